from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppr.errors import (
    MissingDataError,
    OutputExistsError,
    ParameterError,
    StoreError,
    UnknownNodeError,
)
from ppr.fingerprints import (
    FingerprintRun,
    FingerprintStore,
    export_parquet,
    merge_stores,
)
from ppr.graph import Graph
from ppr.params import FingerprintParams
from tests.oracles.dense import solve_ppr
from tests.oracles.fingerprint_runs import GRAPH, PARAMS, TRUTH, file_hashes, finished
from tests.oracles.random_graphs import random_graph, random_market
from tests.oracles.rows import table_of, write_store


def test_store_holds_the_rows(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    store = FingerprintStore.open(tmp_path / "out", graph=GRAPH)
    store.validate(GRAPH)
    assert store.params == PARAMS
    assert store.graph_checksum == GRAPH.checksum
    assert store.n_sources == GRAPH.n_nodes
    expected = table_of(np.arange(60), TRUTH, PARAMS.top_k).to_pylist()
    for source, row in enumerate(expected):
        ids, scores, mass = store.row(source)
        assert ids.tolist() == row["ids"]
        assert scores.tolist() == row["scores"]
        assert mass == row["mass"]
        assert store.moves[source] == row["moves"]
    assert pq.read_table(tmp_path / "out" / "rows").to_pylist() == expected


def test_rows_are_found_by_source(tmp_path: Path) -> None:
    sources = np.asarray([3, 7, 20])
    store = write_store(GRAPH, tmp_path / "some", TRUTH[sources], PARAMS, sources)
    assert store.rows([20, 3, 20]).tolist() == [2, 0, 2]
    for missing in (0, 5, 59, -1, 60):
        with pytest.raises(UnknownNodeError, match=f"node {missing} has no fingerprint"):
            store.rows([3, missing])


def test_rows_without_entries(tmp_path: Path) -> None:
    graph = random_market(1)
    params = FingerprintParams(target_kinds=("user",), top_k=5)
    run = FingerprintRun.begin(graph, tmp_path / "out", params, lambda: [np.asarray([0, 1])], 1)
    assert run is not None
    table = table_of(np.asarray([0, 1]), np.zeros((2, graph.n_nodes)))
    with run:
        run.write_wave(0, [table.set_column(3, "mass", pa.array([1.0, 1.0]))])
        run.finish().validate(graph)


def test_kinds_are_validated(tmp_path: Path) -> None:
    graph = random_market(1)
    params = FingerprintParams(target_kinds=("user",), top_k=5)
    store = write_store(graph, tmp_path / "out", solve_ppr(graph, 0.15), params)
    with pytest.raises(StoreError, match="'target_kinds'"):
        store.validate(graph)


def test_other_graph_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    with pytest.raises(StoreError, match="computed from another graph"):
        FingerprintStore.open(tmp_path / "out", graph=random_graph(2))


def test_parquet_parts_are_validated(tmp_path: Path) -> None:
    store = finished(tmp_path / "out")
    part = store.path / "rows" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.set_column(3, "mass", pa.array([1.0] * 60)), part)
    with pytest.raises(StoreError, match="rows differ from those of the arrays"):
        store.validate()
    pq.write_table(table.slice(0, 59), part)
    with pytest.raises(StoreError, match=r"must hold 60 rows \(got 59\)"):
        store.validate()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("pristine") / "out").path


@settings(max_examples=200, derandomize=True, deadline=None)
@given(data=st.data())
def test_every_altered_or_truncated_file_is_noticed(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(file_hashes(pristine))))
    content = (pristine / name).read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        altered = content[:position]
    else:
        changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[position]))
        altered = content[:position] + bytes([changed]) + content[position + 1 :]
    if name == "manifest.json" and same_json(altered, content):
        return  # white space
    folder = tmp_path_factory.mktemp("altered") / "out"
    shutil.copytree(pristine, folder)
    (folder / name).write_bytes(altered)
    with pytest.raises((StoreError, MissingDataError)):
        FingerprintStore.open(folder, graph=GRAPH)
    shutil.rmtree(folder.parent)


def same_json(first: bytes, second: bytes) -> bool:
    try:
        return bool(json.loads(first) == json.loads(second))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["ids.npy", "rows/part-00000.parquet", "manifest.json"])
def test_missing_files_are_noticed_without_reading_the_rest(
    pristine: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(pristine, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises((StoreError, MissingDataError), match=name.split("/")[-1]):
        FingerprintStore.open(tmp_path / "out", verify=False)


def test_merged_parts_equal_the_whole(tmp_path: Path) -> None:
    whole = finished(tmp_path / "whole")
    owner = np.random.default_rng(0).integers(3, size=60)
    parts = [
        write_store(GRAPH, tmp_path / f"part{i}", TRUTH[owner == i], PARAMS, np.flatnonzero(owner == i))
        for i in range(3)
    ]
    merged = merge_stores([part.path for part in parts], tmp_path / "merged")
    assert merged.checksum == whole.checksum
    assert file_hashes(merged.path) == file_hashes(whole.path)
    assert merge_stores([part.path for part in parts], tmp_path / "merged").checksum == whole.checksum
    two = merge_stores([parts[2].path, parts[0].path], tmp_path / "two")
    assert two.sources.tolist() == np.flatnonzero(owner != 1).tolist()
    two.validate(GRAPH)


def test_stores_that_cannot_be_merged(tmp_path: Path) -> None:
    def store(name: str, sources: list[int], graph: Graph = GRAPH, seed: int = 0) -> Path:
        params = FingerprintParams(top_k=20, seed=seed)
        return write_store(graph, tmp_path / name, TRUTH[sources], params, np.asarray(sources)).path

    first = store("first", [1, 2, 3])
    with pytest.raises(StoreError, match="source 3 is in two stores"):
        merge_stores([first, store("overlap", [3, 4])], tmp_path / "out")
    with pytest.raises(StoreError, match="other parameters"):
        merge_stores([first, store("seed", [5], seed=1)], tmp_path / "out")
    with pytest.raises(StoreError, match="another graph"):
        merge_stores([first, store("graph", [5], graph=random_graph(2))], tmp_path / "out")
    with pytest.raises(ParameterError, match="at least one store"):
        merge_stores([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("string_keys", [False, True])
def test_export_carries_keys_and_kinds(tmp_path: Path, string_keys: bool) -> None:
    plain = random_market(3)
    keys = [f"key {i}" for i in range(70)] if string_keys else [1000 + i for i in range(70)]
    graph = Graph.from_arrays(
        plain.indptr, plain.indices, kind_ids=plain.kind_ids, kinds=plain.kinds, keys=keys, directed=False
    )
    store = write_store(graph, tmp_path / "store", solve_ppr(graph, 0.15), PARAMS)
    export_parquet(store, graph, tmp_path / "rows.parquet")
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(rows) == 70
    for source, row in enumerate(rows):
        ids, scores, mass = store.row(source)
        assert (row["source"], row["source_key"], row["mass"]) == (source, keys[source], mass)
        assert row["source_kind"] == ("item" if source < 40 else "user")
        assert row["ids"] == ids.tolist()
        assert row["scores"] == scores.tolist()
        assert row["keys"] == [keys[node] for node in ids]
        assert row["kinds"] == ["item" if node < 40 else "user" for node in ids]
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")
    with pytest.raises(OutputExistsError, match="is not this export"):
        export_parquet(store, graph, tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="another graph"):
        export_parquet(store, GRAPH, tmp_path / "other.parquet")
