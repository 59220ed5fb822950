"""The block function's contract, and the plan of blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppr import blocks
from ppr.blocks import (
    FINGERPRINT_SCHEMA,
    check_sources,
    compute_block,
    expected_moves,
    plan_blocks,
    predicted_moves,
)
from ppr.errors import ParameterError
from ppr.graph import Graph
from ppr.params import FingerprintParams
from tests.oracles.dense import limited_ppr, solve_ppr
from tests.oracles.naive_walker import naive_walks
from tests.oracles.random_graphs import random_graph

PARAMS = FingerprintParams(n_walks=300, top_k=30)
ROW_COST = 1000.0  # a row counts as this many moves in a plan


def test_rows_come_in_the_order_of_the_sources() -> None:
    graph = random_graph(1)
    table = compute_block(graph, np.arange(60, dtype=np.int32), PARAMS)
    assert table.schema == FINGERPRINT_SCHEMA
    assert table.column("source").to_pylist() == list(range(60))
    order = np.random.default_rng(0).permutation(60).astype(np.int32)
    assert compute_block(graph, order, PARAMS).equals(table.take(order))


def test_a_row_does_not_depend_on_its_block() -> None:
    graph = random_graph(2, weighted=True)
    table = compute_block(graph, np.arange(60, dtype=np.int32), PARAMS)
    for source in range(60):
        alone = compute_block(graph, np.array([source], np.int32), PARAMS)
        assert alone.equals(table.slice(source, 1).combine_chunks())


def test_a_stored_graph_gives_the_bits_of_the_one_in_memory(tmp_path: Path) -> None:
    graph = random_graph(3, weighted=True)
    sources = np.arange(60, dtype=np.int32)
    stored = graph.save(tmp_path / "graph")
    assert not stored.indices.flags.writeable
    assert compute_block(stored, sources, PARAMS).equals(compute_block(graph, sources, PARAMS))


@pytest.mark.parametrize("n_walks", [10, 300, 20_000])
def test_packets_move_no_more_than_pushing_may(n_walks: int) -> None:
    """Mass is handed on in units of half a walker or more, so moves are at most twice those of walkers."""
    n_nodes, degree = 400, 20
    rng = np.random.default_rng(4)
    indices = np.concatenate([np.sort(rng.choice(n_nodes, degree, replace=False)) for _ in range(n_nodes)])
    graph = Graph.from_arrays(np.arange(0, n_nodes * degree + 1, degree), indices)
    moves = compute_block(
        graph, np.arange(n_nodes, dtype=np.int32), FingerprintParams(n_walks=n_walks, top_k=1)
    )["moves"].to_numpy()
    expected = n_walks * 0.85 / 0.15
    standard_error = moves.std() / np.sqrt(n_nodes)
    assert moves.mean() <= 2 * expected + 6 * standard_error


@pytest.mark.parametrize("restart_prob", [0.1, 0.15, 0.5, 0.9])
def test_predicted_moves_are_those_of_walkers(restart_prob: float) -> None:
    graph = random_graph(5, n_nodes=100)
    predicted = predicted_moves(graph, FingerprintParams(restart_prob=restart_prob, n_walks=500))
    expected = 500 * (solve_ppr(graph, restart_prob).sum(axis=1) / restart_prob - 1)
    # It settles where a sweep adds under 2 %; each later one would add 1 - c times the one before.
    shortfall = 1 - 0.02 * (1 - restart_prob) / restart_prob
    assert np.all(predicted <= expected * (1 + 1e-12))
    assert np.all(predicted >= expected * min(shortfall, 1 - (1 - restart_prob) ** 24))
    assert np.all((predicted == 0) == (graph.out_degree == 0))


def test_predicted_moves_of_limited_walks() -> None:
    graph = random_graph(6, n_nodes=100)
    params = FingerprintParams(restart_prob=0.001, n_walks=500, max_steps=3)
    expected = 500 * (limited_ppr(graph, 0.001, 3).sum(axis=1) / 0.001 - 1)
    np.testing.assert_allclose(predicted_moves(graph, params), expected)


def test_predicted_moves_against_simulated_walks() -> None:
    graph = random_graph(7)
    n_walks = 20_000
    predicted = predicted_moves(graph, FingerprintParams(restart_prob=0.5, n_walks=n_walks))
    for source in (0, 7):
        visits = naive_walks(graph, source, restart_prob=0.5, n_walks=n_walks, seed=source) * n_walks / 0.5
        assert predicted[source] == pytest.approx(visits.sum() - n_walks, rel=0.03)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    sources=st.none() | st.sets(st.integers(0, 59), max_size=60).map(list),
    block_moves=st.sampled_from([1, 2000, 7000.5, 50_000, 10**12]),
    n_walks=st.sampled_from([1, 300, 3000]),
)
def test_plan_covers_the_sources_in_equal_shares(
    sources: list[int] | None, block_moves: float, n_walks: int
) -> None:
    graph = random_graph(8)
    params = FingerprintParams(n_walks=n_walks)
    blocks = plan_blocks(graph, sources, params, block_moves=block_moves)
    wanted = range(60) if sources is None else sorted(sources)
    assert [node for block in blocks for node in block.tolist()] == list(wanted)
    assert all(block.dtype == np.int32 and block.size for block in blocks)
    if not blocks:
        return
    cost = ROW_COST + predicted_moves(graph, params)
    costs = np.array([cost[block].sum() for block in blocks])
    largest = cost[list(wanted)].max()
    n_wanted = min(len(wanted), np.ceil(costs.sum() / block_moves))
    assert len(blocks) <= n_wanted
    # A block ends with the source in which its share of the whole is reached.
    assert costs.max() <= (costs.sum() / n_wanted + largest) * (1 + 1e-12)
    if block_moves > largest:
        assert costs.max() <= block_moves + largest


def test_few_sources_of_a_large_graph_are_planned_without_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction reads all edges some twenty times: for a few sources their walks cost less."""
    graph = random_graph(8)
    monkeypatch.setattr(blocks, "_QUICK_EDGES", 0)
    monkeypatch.setattr(blocks, "predicted_moves", lambda *_: pytest.fail("all edges were swept over"))
    params = FingerprintParams(n_walks=1)
    assert len(graph.indices) * 24 > 9 * expected_moves(params)
    assert [len(block) for block in plan_blocks(graph, range(9), params, block_moves=3100)] == [3, 3, 3]
    with pytest.raises(pytest.fail.Exception):
        plan_blocks(graph, range(9), FingerprintParams(n_walks=30_000))


def test_order_of_sources_does_not_change_the_plan() -> None:
    graph = random_graph(9)
    sources = np.random.default_rng(1).permutation(60)[:40]
    plans = [plan_blocks(graph, order, PARAMS, block_moves=5000) for order in (sources, np.sort(sources))]
    assert len(plans[0]) > 5
    assert [block.tolist() for block in plans[0]] == [block.tolist() for block in plans[1]]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([0, 60], r"'sources' must be node ids from 0 to 59 \(got 60\)"),
        ([3, -1], r"'sources' must be node ids from 0 to 59 \(got -1\)"),
        ([2**31], r"\(got 2147483648\)"),
        ([5, 6, 5], r"'sources' must be distinct \(got 3 with 2 distinct\)"),
    ],
)
def test_bad_sources_are_refused(sources: list[int], message: str) -> None:
    graph = random_graph(1)
    for refuse in (lambda: check_sources(graph, sources), lambda: plan_blocks(graph, sources, PARAMS)):
        with pytest.raises(ParameterError, match=message):
            refuse()


def test_no_sources_no_blocks() -> None:
    assert plan_blocks(random_graph(1), [], PARAMS) == []
