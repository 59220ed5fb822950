"""Partitioned walks: the bits of the in-memory engine and of the rules, however the graph is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppr.blocks import FINGERPRINT_SCHEMA, compute_block
from ppr.errors import OutputExistsError, ParameterError, UnknownNodeError
from ppr.fingerprints import FingerprintStore, Rows
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.partitioned import Progress, Sizes, compute_fingerprints_partitioned
from tests.oracles.naive_packets import naive_row
from tests.oracles.random_graphs import random_graph, random_market

ARRAYS = ("sources", "indptr", "ids", "scores", "mass", "moves")
ROUNDS_ONLY = 0  # messages below which one task would take all further steps


@pytest.fixture(autouse=True)
def _not_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small stores: the disk would take longer than all else."""
    monkeypatch.setattr("ppr.manifest.sync", lambda path: None)


def assert_rows(
    store: FingerprintStore, graph: Graph, params: FingerprintParams, sources: Any = None
) -> None:
    """Compare with what the block function of the in-memory engines gives."""
    wanted = np.arange(graph.n_nodes) if sources is None else np.sort(sources)
    expected = Rows.from_arrow(compute_block(graph, wanted.astype(np.int32), params))
    for name in ARRAYS:
        ours, theirs = getattr(store, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes(), name


SEVERAL_PARAMS = [
    FingerprintParams(n_walks=200, top_k=20, seed=3),
    FingerprintParams(n_walks=7, top_k=None),
    FingerprintParams(n_walks=3000, top_k=5, max_steps=3, exclude_neighbors=True),
    FingerprintParams(n_walks=40, top_k=8, max_steps=1, exclude_neighbors=True, restart_prob=0.5),
    FingerprintParams(n_walks=2, top_k=None, restart_prob=0.02),
]


@pytest.mark.parametrize("params", SEVERAL_PARAMS, ids=range(len(SEVERAL_PARAMS)))
@pytest.mark.parametrize("weighted", [False, True])
def test_same_bits_however_the_graph_is_cut(
    tmp_path: Path, params: FingerprintParams, weighted: bool
) -> None:
    graph = random_graph(1, n_nodes=50, weighted=weighted)
    for number, (n_parts, cut_share, batch, chunk, rest) in enumerate(
        [
            (1, None, 50, 1 << 14, ROUNDS_ONLY),
            (2, 0.0, 7, 40, ROUNDS_ONLY),
            (3, None, 20, 300, 1 << 14),
            (7, 0.0, 50, 1 << 14, 3000),
        ]
    ):
        store = compute_fingerprints_partitioned(
            graph,
            tmp_path / str(number),
            params,
            threads=2,
            sizes=Sizes(n_parts, batch, chunk, rest),
            cut_share=cut_share,
        )
        assert_rows(store, graph, params)


def test_the_store_is_that_of_the_local_engine(tmp_path: Path) -> None:
    """Checksum and files, from a store on the disk, of some sources in any order."""
    graph = random_graph(5, n_nodes=80, weighted=True).save(tmp_path / "graph")
    sources = np.random.default_rng(0).permutation(80)[:33].astype(np.int32)
    params = SEVERAL_PARAMS[0]
    local = compute_fingerprints(graph, tmp_path / "local", params, sources=sources)
    store = compute_fingerprints_partitioned(
        graph, tmp_path / "out", params, sources=sources, sizes=Sizes(3, 10, 500), threads=2
    )
    assert store.manifest == local.manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph", "local", "out"]


def test_target_kinds(tmp_path: Path) -> None:
    graph = random_market(2).save(tmp_path / "graph")
    params = FingerprintParams(n_walks=300, target_kinds=("item",), exclude_neighbors=True, top_k=6)
    store = compute_fingerprints_partitioned(
        graph, tmp_path / "out", params, sizes=Sizes(4, 30, 500), threads=1
    )
    assert_rows(store, graph, params)
    with pytest.raises(UnknownNodeError, match="llm"):
        compute_fingerprints_partitioned(graph, tmp_path / "no", FingerprintParams(target_kinds=("llm",)))


@st.composite
def _cut_graphs(draw: st.DrawFn) -> tuple[Graph, FingerprintParams, Sizes, float | None]:
    n_nodes = draw(st.integers(1, 12))
    rows = [sorted(draw(st.sets(st.integers(0, n_nodes - 1)))) for _ in range(n_nodes)]
    n_edges = sum(map(len, rows))
    weight = st.one_of(st.integers(1, 5), st.floats(1e-3, 1e3))
    weights = draw(st.none() | st.lists(weight, min_size=n_edges, max_size=n_edges))
    graph = Graph.from_arrays(
        np.cumsum([0, *map(len, rows)]), [node for row in rows for node in row] or np.empty(0, int), weights
    )
    params = FingerprintParams(
        restart_prob=draw(st.sampled_from([0.15, 0.5, 0.9])),
        n_walks=draw(st.sampled_from([1, 3, 20, 1000])),
        top_k=draw(st.sampled_from([None, 1, 4])),
        seed=draw(st.integers(0, 9)),
        max_steps=draw(st.sampled_from([None, 1, 4])),
        exclude_neighbors=draw(st.booleans()),
    )
    sizes = Sizes(
        draw(st.integers(1, 15)), draw(st.integers(1, 12)), draw(st.sampled_from([1, 30, 1 << 14])),
        draw(st.sampled_from([ROUNDS_ONLY, 100, 1 << 14])),
    )  # fmt: skip
    return graph, params, sizes, draw(st.sampled_from([None, 0.0]))


@given(case=_cut_graphs())
@settings(max_examples=40)
def test_rows_are_those_of_the_rules(tmp_path_factory: pytest.TempPathFactory, case: Any) -> None:
    """Against dictionaries and unbounded integers, with more parts than nodes and every row cut."""
    graph, params, sizes, cut_share = case
    out = tmp_path_factory.mktemp("cut") / "out"
    store = compute_fingerprints_partitioned(graph, out, params, sizes=sizes, cut_share=cut_share, threads=1)
    for source in range(graph.n_nodes):
        row = naive_row(graph, source, params)
        ids, scores, mass = store.row(source)
        assert (ids.tolist(), scores.tobytes(), mass) == (row.ids.tolist(), row.scores.tobytes(), row.mass)
        assert store.moves[source] == row.moves


@pytest.mark.parametrize("n_parts", [1, 3])
def test_graphs_with_nothing_to_walk(tmp_path: Path, n_parts: int) -> None:
    for name, graph in (
        ("one node", Graph.from_arrays([0, 0], np.empty(0, int))),
        ("its own neighbour", Graph.from_arrays([0, 1], [0])),
        ("no edges", Graph.from_arrays(np.zeros(6, int), np.empty(0, int))),
    ):
        stored = graph.save(tmp_path / name)
        store = compute_fingerprints_partitioned(
            stored, tmp_path / f"{name} out", SEVERAL_PARAMS[0], sizes=Sizes(n_parts, 2, 10), threads=1
        )
        assert_rows(store, graph, SEVERAL_PARAMS[0])


def test_progress_counts_rounds_to_their_end(tmp_path: Path) -> None:
    graph = random_graph(1, n_nodes=60)
    seen: list[Progress] = []
    compute_fingerprints_partitioned(
        graph,
        tmp_path / "out",
        FingerprintParams(n_walks=50),
        sizes=Sizes(2, 10, 1000, ROUNDS_ONLY),
        progress=seen.append,
        threads=1,
    )
    assert [one.rounds for one in seen] == list(range(len(seen)))
    assert all(one.expected_rounds >= one.rounds for one in seen)
    assert 0.5 < seen[10].expected_rounds / len(seen) < 2
    assert (seen[0].batches_done, seen[-1].batches_done, seen[-1].n_batches) == (0, 6, 6)
    assert seen[-1].expected_rounds == seen[-1].rounds
    assert [one.under_way for one in seen[:7]] == [0, 1, 2, 3, 4, 5, 6]
    assert seen[3].messages > 0
    assert seen[3].n_bytes > 0


def test_finished_output_is_left_alone(tmp_path: Path) -> None:
    graph = random_graph(1, n_nodes=20)
    out, params = tmp_path / "out", SEVERAL_PARAMS[0]
    compute_fingerprints(graph, out, params)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    seen: list[Progress] = []
    compute_fingerprints_partitioned(graph, out, params, progress=seen.append)
    assert seen == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(OutputExistsError, match="n_walks"):
        compute_fingerprints_partitioned(graph, out, SEVERAL_PARAMS[1])


def test_sources_keep_their_rules(tmp_path: Path) -> None:
    graph = random_graph(1, n_nodes=20)
    for sources, message in (([3, 3], "distinct"), ([20], "0 to 19"), ([], "at least one")):
        with pytest.raises(ParameterError, match=message):
            compute_fingerprints_partitioned(
                graph, tmp_path / "out", SEVERAL_PARAMS[0], sources=np.array(sources, np.int32)
            )
    with pytest.raises(ParameterError, match=r"'threads' must be positive \(got 0\)"):
        compute_fingerprints_partitioned(graph, tmp_path / "out", SEVERAL_PARAMS[0], threads=0)
    assert not list(tmp_path.iterdir())


def test_removed_nodes_have_no_rows(tmp_path: Path) -> None:
    """They are no sources, and nothing reaches them."""
    from ppr.build import build_graph

    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("src,dst\n" + "".join(f"{a},{(a * 7 + 3) % 30}\n" for a in range(30)))
    second.write_text("src,dst\n" + "".join(f"{a},{(a * 7 + 3) % 20}\n" for a in range(20)))
    old = build_graph([first], tmp_path / "old")
    new = build_graph([second], tmp_path / "new", previous=old)
    assert 0 < new.removed.size < new.n_nodes
    params = SEVERAL_PARAMS[0]
    store = compute_fingerprints_partitioned(new, tmp_path / "out", params, sizes=Sizes(3, 5, 100), threads=1)
    assert store.sources.tolist() == new.live.tolist()
    assert_rows(store, new, params, new.live)
    with pytest.raises(ParameterError, match="removed"):
        compute_fingerprints_partitioned(new, tmp_path / "no", params, sources=new.removed[:1])


def test_schema_of_a_merged_row(tmp_path: Path) -> None:
    """The blocks in the waves are those that the in-memory engine writes."""
    graph = random_graph(1, n_nodes=30)
    blocks: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppr.partitioned.task.write_block", lambda folder, number, table: blocks.append(table))
        patch.setattr("ppr.fingerprints.run.FingerprintRun.finish", lambda run: None)
        compute_fingerprints_partitioned(
            graph, tmp_path / "out", SEVERAL_PARAMS[0], sizes=Sizes(2, 30, 1000), threads=1
        )
    assert [table.schema for table in blocks] == [FINGERPRINT_SCHEMA] * 2
    assert [table.num_rows for table in blocks] == [15, 15]
