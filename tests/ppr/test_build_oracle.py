"""The streaming builder against the obvious slow one, over all kinds of small inputs."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppr import readers
from ppr.build import build_graph
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput
from ppr.keys import KeyTranslator
from tests.oracles.naive_graph import assert_equal, naive_graph

pytestmark = pytest.mark.usefixtures("quick_disk")

INTEGERS = st.one_of(st.integers(-3, 8), st.sampled_from([-(2**63), 2**63 - 1, 10**12, 2**31]))
# Surrogates are not characters; a text file's own syntax and blanks at the ends have tests of their own.
STRINGS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters='",#'),
    min_size=1,
    max_size=3,
)
WEIGHTS = st.one_of(
    st.just(1.0), st.integers(1, 5).map(float), st.sampled_from([0.1, 0.2, 0.3, 2.0**31, 1e-300, 1e300, 0.5])
)
KINDS = st.sampled_from(["node", "user", "item", "ünit"])


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    keys = draw(
        st.sampled_from([INTEGERS, STRINGS, st.sampled_from(["a", "b", "é", "z", "\U0001d537", "\ufb00"])])
    )
    table = st.fixed_dictionaries(
        {
            "rows": st.lists(
                st.tuples(keys, keys, draw(st.sampled_from([st.just(1.0), WEIGHTS]))), min_size=1, max_size=14
            ),
            "src_kind": KINDS,
            "dst_kind": KINDS,
            "directed": st.booleans(),
        }
    )
    return draw(st.lists(table, min_size=1, max_size=3))


def arrow_table(rows: list[tuple[Any, Any, float]]) -> pa.Table:
    src, dst, weight = zip(*rows, strict=True)
    return pa.table({"src": list(src), "dst": list(dst), "weight": list(weight)})


def edge_input(table: dict[str, Any], data: Any) -> EdgeInput:
    return EdgeInput(data, src_kind=table["src_kind"], dst_kind=table["dst_kind"], directed=table["directed"])


scratch_is_shared = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


@scratch_is_shared
@given(tables(), st.booleans(), st.integers(1, 9), st.data())
def test_same_arrays_as_the_naive_builder(
    tmp_path_factory: pytest.TempPathFactory,
    tables: list[dict[str, Any]],
    keep: bool,
    bucket_edges: int,
    data: st.DataObject,
) -> None:
    listed = [("spare", key) for key, _, _ in tables[0]["rows"][:2]]
    naive = naive_graph(tables, listed, keep_self_loops=keep)
    folder = tmp_path_factory.mktemp("build")
    nodes = NodeInput(pa.table({"key": [key for _, key in listed], "kind": [kind for kind, _ in listed]}))
    inputs = [edge_input(table, arrow_table(table["rows"])) for table in tables]
    options: dict[str, Any] = {"nodes": nodes, "self_loops": "keep" if keep else "drop"}
    graph = build_graph(inputs, folder / "graph", bucket_edges=bucket_edges, **options)
    assert_equal(graph, naive)

    for table in tables:
        table["rows"] = data.draw(st.permutations(table["rows"]))
    shuffled = [edge_input(table, arrow_table(table["rows"])) for table in data.draw(st.permutations(tables))]
    again = build_graph(shuffled, folder / "again", bucket_edges=2, **options)
    assert again.checksum == graph.checksum
    assert Graph.open(folder / "again").checksum == graph.checksum


@scratch_is_shared
@given(tables(), st.integers(1, 5), st.sampled_from([",", "\t", ";"]))
def test_same_graph_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, tables: list[dict[str, Any]], batch_rows: int, delimiter: str
) -> None:
    table = tables[0]
    rows = table["rows"]
    key_type = "int64" if isinstance(rows[0][0], int) else "string"
    folder = tmp_path_factory.mktemp("formats")
    arrow = arrow_table(rows)
    pq.write_table(arrow, folder / "edges.parquet", row_group_size=batch_rows)
    pq.write_to_dataset(
        arrow.slice(0, len(rows) // 2 + 1), folder / "parts", basename_template="a-{i}.parquet"
    )
    pq.write_to_dataset(arrow.slice(len(rows) // 2 + 1), folder / "parts", basename_template="b-{i}.parquet")
    with (folder / "edges.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("src", "dst", "weight"), *rows])
    with gzip.open(folder / "bare.txt.gz", "wt", encoding="utf-8", newline="") as file:
        file.write("# a comment\n\n")
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)
    if key_type == "int64":
        np.savez(folder / "edges.npz", **{name: arrow[name].to_numpy() for name in arrow.column_names})

    files = sorted(path for path in folder.iterdir())
    batches = arrow.to_batches(max_chunksize=batch_rows)
    sources = {
        "table": arrow,
        "batches": batches,
        "generator": iter(batches),
        "reader": pa.RecordBatchReader.from_batches(arrow.schema, batches),
        "pandas": arrow.to_pandas(),
        **{path.name: path for path in files},
    }
    text = {"header": None, "delimiter": delimiter}
    checksums = {}
    for name, data in sources.items():
        options = {**text, "header": False} if name == "bare.txt.gz" else text
        source = EdgeInput(
            data, src_kind=table["src_kind"], dst_kind=table["dst_kind"], directed=True, **options
        )
        checksums[name] = build_graph(source, folder / f"graph-{name}", key_type=key_type).checksum
    assert len(set(checksums.values())) == 1, checksums


def test_many_batches_blocks_and_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, text blocks, key sets and buckets so small that each of them is cut many times."""
    rng = np.random.default_rng(5)
    rows = [
        (int(s), int(d), float(w))
        for s, d, w in zip(
            rng.integers(0, 300, 4000), rng.zipf(1.5, 4000) % 500, rng.lognormal(size=4000), strict=True
        )
    ]
    naive = naive_graph([{"rows": rows, "src_kind": "node", "dst_kind": "node", "directed": False}])
    path = tmp_path / "edges.csv"
    path.write_text("src,dst,weight\n" + "".join(f"{s},{d},{w!r}\n" for s, d, w in rows))
    monkeypatch.setattr(readers.part, "BATCH_ROWS", 700)
    monkeypatch.setattr(readers.text, "BLOCK_BYTES", 5000)
    monkeypatch.setattr("ppr.keys._COMPACT_AT", 50)
    monkeypatch.setattr("ppr.build._GATHER_BYTES", 0)
    monkeypatch.setattr("ppr.sorting._BATCH_EDGES", 333)
    steps: list[tuple[str, int, int | None]] = []
    graph = build_graph(
        EdgeInput(path, directed=False),
        tmp_path / "g",
        bucket_edges=97,
        progress=lambda *step: steps.append(step),
    )
    assert_equal(graph, naive)
    table = pa.table(
        {"src": [r[0] for r in rows], "dst": [r[1] for r in rows], "weight": [r[2] for r in rows]}
    )
    assert build_graph(EdgeInput(table, directed=False), tmp_path / "h").checksum == graph.checksum
    assert list(dict.fromkeys(stage for stage, _, _ in steps)) == [
        "read keys",
        "translate",
        "scatter",
        "sort",
        "checksum",
    ]
    for stage in ("scatter", "sort"):
        done = [step[1] for step in steps if step[0] == stage]
        assert len(done) > 10
        assert done == sorted(done)
        assert done[-1] == graph.manifest["counts"]["edges_before_merging"]


@pytest.mark.parametrize("sparse", [False, True])
def test_integer_keys_far_apart_and_close(
    tmp_path: Path, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to translate integer keys: by table and by hashing."""
    monkeypatch.setattr("ppr.keys._TABLE_ALWAYS", 0)
    step = 10**9 if sparse else 1
    rows = [(i * step, (i * 7 % 50) * step, 1.0) for i in range(-20, 50)]
    naive = naive_graph([{"rows": rows, "src_kind": "node", "dst_kind": "node", "directed": True}])
    assert_equal(build_graph(arrow_table(rows), tmp_path / "graph"), naive)


@pytest.mark.parametrize("as_strings", [False, True])
def test_keys_are_hashed_a_few_times_only(
    tmp_path: Path, as_strings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small batches of keys without a table are gathered: the work is linear in the number of rows."""
    src, dst = np.random.default_rng(8).integers(0, 1 << 62, size=(2, 40_000))
    table = pa.table(
        {"src": src.astype(str), "dst": dst.astype(str)} if as_strings else {"src": src, "dst": dst}
    )
    whole = build_graph(table.combine_chunks(), tmp_path / "whole")
    calls: list[int] = []
    translate = KeyTranslator.translate

    def counted(self: KeyTranslator, keys: pa.Array) -> Any:
        calls.append(len(keys))
        return translate(self, keys)

    monkeypatch.setattr(KeyTranslator, "translate", counted)
    monkeypatch.setattr("ppr.build._GATHER_BYTES", 0)
    small = pa.Table.from_batches(table.to_batches(max_chunksize=100))
    assert build_graph(small, tmp_path / "small").checksum == whole.checksum
    assert sum(calls) == 2 * len(src)
    assert len(calls) <= 8


def test_weights_of_some_batches_only(tmp_path: Path) -> None:
    """Rows without a weight count 1 also where they share a batch with weighted rows."""
    (tmp_path / "part-0.csv").write_text("src,dst,weight\n1,2,2.5\n2,1,4\n")
    (tmp_path / "part-1.csv").write_text("src,dst\n1,3\n1,2\n")
    rows = [(1, 2, 2.5), (2, 1, 4.0), (1, 3, 1.0), (1, 2, 1.0)]
    naive = naive_graph([{"rows": rows, "src_kind": "node", "dst_kind": "node", "directed": True}])
    paths = [tmp_path / f"part-{i}.csv" for i in range(2)]
    assert_equal(build_graph([EdgeInput(path) for path in paths], tmp_path / "graph"), naive)
