"""Rows cut out of full ones: order, ties, truncation, kinds, neighbours left out."""

from __future__ import annotations

import numpy as np
import pytest

from ppr.blocks import compute_block
from ppr.errors import UnknownNodeError
from ppr.graph import Graph
from ppr.params import FingerprintParams
from tests.oracles.random_graphs import random_graph, random_market

Row = list[tuple[int, float]]


def rows_of(graph: Graph, params: FingerprintParams) -> list[Row]:
    """(id, score) pairs of every node's row."""
    table = compute_block(graph, np.arange(graph.n_nodes, dtype=np.int32), params)
    return [
        list(zip(ids, scores, strict=True))
        for ids, scores in zip(table["ids"].to_pylist(), table["scores"].to_pylist(), strict=True)
    ]


def full_rows(graph: Graph, n_walks: int) -> list[Row]:
    return rows_of(graph, FingerprintParams(n_walks=n_walks, top_k=None))


def with_ties() -> Graph:
    """Two sources of 40 leaves each, at random ids: scores of leaves tie, or differ by one unit."""
    rng = np.random.default_rng(3)
    targets = [np.sort(rng.choice(np.arange(2, 100), 40, replace=False)) for _ in range(2)]
    return Graph.from_arrays(np.concatenate([[0, 40], np.full(99, 80)]), np.concatenate(targets))


GRAPHS = [
    pytest.param(random_graph(1, n_nodes=300, degree=8), id="unweighted"),
    pytest.param(random_graph(2, n_nodes=300, degree=8, weighted=True), id="weighted"),
    pytest.param(random_market(3), id="market"),
    pytest.param(with_ties(), id="ties"),
]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("n_walks", [30, 3000])
def test_rows_descend_with_ties_by_id(graph: Graph, n_walks: int) -> None:
    for row in full_rows(graph, n_walks):
        assert row == sorted(row, key=lambda entry: (-entry[1], entry[0]))
        assert all(score > 0 for _, score in row)
        assert len({node for node, _ in row}) == len(row)


def test_ties_are_there_and_are_cut_by_id() -> None:
    graph = with_ties()
    full = full_rows(graph, 3000)[0]
    scores = [score for _, score in full]
    assert len(set(scores)) < len(scores) - 10
    for k in range(1, 42):
        assert rows_of(graph, FingerprintParams(top_k=k))[0] == full[:k]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("n_walks", [30, 3000])
@pytest.mark.parametrize("top_k", [1, 2, 7, 50, 10_000])
def test_short_rows_are_the_heads_of_full_ones(graph: Graph, n_walks: int, top_k: int) -> None:
    short = rows_of(graph, FingerprintParams(n_walks=n_walks, top_k=top_k))
    assert short == [row[:top_k] for row in full_rows(graph, n_walks)]


@pytest.mark.parametrize("top_k", [3, 15, None])
@pytest.mark.parametrize("kind", ["item", "user"])
def test_target_kinds(kind: str, top_k: int | None) -> None:
    graph = random_market(4)
    allowed = set(graph.nodes_of_kind(kind).tolist())
    restricted = rows_of(graph, FingerprintParams(n_walks=500, top_k=top_k, target_kinds=(kind,)))
    full = full_rows(graph, 500)
    assert restricted == [[entry for entry in row if entry[0] in allowed][:top_k] for row in full]


def test_all_kinds_named_is_no_restriction() -> None:
    graph = random_market(4)
    params = FingerprintParams(n_walks=500, top_k=None, target_kinds=("item", "user"))
    assert rows_of(graph, params) == full_rows(graph, 500)


def test_unknown_target_kind_is_refused() -> None:
    params = FingerprintParams(target_kinds=("llm",))
    with pytest.raises(UnknownNodeError, match="llm"):
        compute_block(random_market(1), np.array([0], np.int32), params)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("top_k", [3, None])
def test_own_neighbours_and_the_source_are_left_out(graph: Graph, top_k: int | None) -> None:
    params = FingerprintParams(n_walks=500, top_k=top_k, exclude_neighbors=True)
    for source, (row, full) in enumerate(zip(rows_of(graph, params), full_rows(graph, 500), strict=True)):
        seen = {source, *graph.indices[graph.indptr[source] : graph.indptr[source + 1]].tolist()}
        assert row == [entry for entry in full if entry[0] not in seen][:top_k]


@pytest.mark.parametrize(
    "params",
    [
        FingerprintParams(n_walks=500, top_k=1),
        FingerprintParams(n_walks=500, exclude_neighbors=True),
        FingerprintParams(n_walks=500, target_kinds=("item",)),
        FingerprintParams(n_walks=500, top_k=2, target_kinds=("user",), exclude_neighbors=True),
    ],
)
def test_mass_and_moves_do_not_depend_on_what_is_kept(params: FingerprintParams) -> None:
    graph = random_market(5)
    sources = np.arange(graph.n_nodes, dtype=np.int32)
    cut = compute_block(graph, sources, params)
    full = compute_block(graph, sources, FingerprintParams(n_walks=500, top_k=None))
    assert cut.select(["source", "mass", "moves"]).equals(full.select(["source", "mass", "moves"]))
