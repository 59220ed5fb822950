from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppr.exact import exact_ppr
from ppr.graph import Graph
from ppr.params import FingerprintParams
from ppr.refresh import bound
from ppr.refresh.bound import change_bounds, changed_rows, walked_restart_prob
from tests.oracles.changing_graphs import lineages
from tests.oracles.dense import changed_transition, refresh_bounds, solve_ppr
from tests.oracles.random_graphs import random_graph

RESTART_PROBS = st.sampled_from([0.05, 0.15, 0.6])
MAX_STEPS = st.sampled_from([None, 1, 2, 5])


@given(lineages())
def test_changed_rows_are_those_of_the_dense_matrices(graphs: list[Graph]) -> None:
    old, new = graphs
    moved, named = changed_rows(old, new)
    np.testing.assert_allclose(moved, changed_transition(old, new), rtol=1e-12, atol=1e-12)
    for node in range(old.n_nodes):
        rows = [graph.indices[graph.indptr[node] : graph.indptr[node + 1]] for graph in graphs]
        assert named[node] == (rows[0].tolist() != rows[1].tolist())


@given(lineages(), RESTART_PROBS, MAX_STEPS)
def test_bounds_are_those_of_the_theory_and_hold(
    graphs: list[Graph], restart_prob: float, max_steps: int | None
) -> None:
    old, new = graphs
    params = FingerprintParams(restart_prob=restart_prob, max_steps=max_steps)
    moved, _ = changed_rows(old, new)
    bounds = change_bounds(old, moved, params, slack=1e-9)
    stop = walked_restart_prob(params)
    expected = refresh_bounds(old, new, stop, max_steps)
    np.testing.assert_allclose(bounds, expected, rtol=1e-9, atol=1.001e-9)
    sources = np.setdiff1d(old.live, new.removed)
    before, after = (
        exact_ppr(graph, sources, restart_prob=stop, max_steps=max_steps, tol=1e-14) for graph in graphs
    )
    after[:, : old.n_nodes] -= before
    assert np.all(np.abs(after).sum(axis=1) <= bounds[sources] + 1e-12)
    assert np.all(np.abs(after[:, new.live]).sum(axis=1) <= bounds[sources] + 1e-12)  # less removed nodes


@given(lineages(max_nodes=6), MAX_STEPS)
def test_bounds_hold_in_floating_point(graphs: list[Graph], max_steps: int | None) -> None:
    """No allowance: the bound is compared with fractions.

    Without a limit the sum in fractions ends where less is left than any rounding, and the slack is as small.
    """
    old, new = graphs
    restart_prob, slack, last = (0.9, 1e-22, 26) if max_steps is None else (0.3, 1e-3, max_steps)
    params = FingerprintParams(restart_prob=restart_prob, max_steps=max_steps)
    moved, _ = changed_rows(old, new)
    before, after = _fractions(old), _fractions(new)
    exact = [
        sum(
            abs(after[node].get(v, Fraction(0)) - before[node].get(v, Fraction(0)))
            for v in range(new.n_nodes)
        )
        for node in range(old.n_nodes)
    ]
    for value, expected in zip(moved.tolist(), exact, strict=True):
        assert Fraction(value) >= expected
        assert (value == 0.0) == (expected == 0)
    stop = Fraction(walked_restart_prob(params))
    moved = np.ceil(1024 * moved) / 1024  # so that nothing but the sum is rounded
    exact = [Fraction(value) for value in moved.tolist()]
    bounds = change_bounds(old, moved, params, slack=slack)
    total = [Fraction(0)] * old.n_nodes
    for step in range(last):
        without_limit = (1 - stop) ** (step + 1)
        weight = without_limit if max_steps is None else without_limit - (1 - stop) ** (last + 1)
        total = [one + weight * value for one, value in zip(total, exact, strict=True)]
        exact = [sum((p * exact[v] for v, p in before[u].items()), Fraction(0)) for u in range(old.n_nodes)]
    assert all(Fraction(value) >= expected for value, expected in zip(bounds.tolist(), total, strict=True))


def _fractions(graph: Graph) -> list[dict[int, Fraction]]:
    rows = []
    for node in range(graph.n_nodes):
        edges = slice(int(graph.indptr[node]), int(graph.indptr[node + 1]))
        ids = graph.indices[edges].tolist()
        upto = range(1, len(ids) + 1) if graph.cumulative is None else graph.cumulative[edges].tolist()
        upto = [0, *upto]
        rows.append({v: Fraction(upto[i + 1] - upto[i], upto[-1]) for i, v in enumerate(ids)})
    return rows


@pytest.mark.parametrize("restart_prob", [0.15, 0.5])
def test_bounds_are_reached(restart_prob: float) -> None:
    """A hub's leaves keep all mass; when it moves to other leaves, nothing of it stays where it was."""
    leaves, moved_to = np.arange(1, 4), np.arange(4, 7)
    old, new = (
        Graph.from_arrays(np.r_[0, np.arange(3, 10)], np.r_[targets, np.arange(1, 7)])
        for targets in (leaves, moved_to)
    )
    params = FingerprintParams(restart_prob=restart_prob)
    moved, _ = changed_rows(old, new)
    bounds = change_bounds(old, moved, params, slack=1e-12)
    stop = walked_restart_prob(params)
    true = np.abs(solve_ppr(new, stop) - solve_ppr(old, stop)).sum(axis=1)
    assert true[0] == pytest.approx(2 * (1 - stop))
    np.testing.assert_allclose(bounds, true, atol=1.1e-12)


def test_sources_that_reach_no_change_have_a_bound_of_zero() -> None:
    """Also where the sum over steps is cut early."""
    n_nodes = 40
    ring = np.arange(n_nodes) // 20 * 20 + (np.arange(n_nodes) + 1) % 20  # two rings
    old = Graph.from_arrays(np.arange(n_nodes + 1), ring)
    ring[5] = 7
    new = Graph.from_arrays(np.arange(n_nodes + 1), ring)
    moved, _ = changed_rows(old, new)
    bounds = change_bounds(old, moved, FingerprintParams(), slack=1e-3)
    assert np.all(bounds[:20] > 0.0)
    assert np.all(bounds[20:] == 0.0)
    assert np.all(change_bounds(old, moved, FingerprintParams(), slack=1.0)[20:] > 0.0)  # nobody knows yet
    assert not change_bounds(old, np.zeros(n_nodes), FingerprintParams(), slack=1e-3).any()


def test_what_is_cut_off_is_within_the_slack() -> None:
    old, new = random_graph(1), random_graph(2)
    moved, _ = changed_rows(old, new)
    steps: list[int] = []
    finest = change_bounds(old, moved, FingerprintParams(), slack=1e-13, progress=steps.append)
    assert steps == list(range(2, steps[-1] + 1))
    for slack in (1e-6, 1e-2, 0.5):
        fewer: list[int] = []
        bounds = change_bounds(old, moved, FingerprintParams(), slack=slack, progress=fewer.append)
        assert np.all((bounds >= finest - 1e-12) & (bounds <= finest + slack + 1e-12))
        assert len(fewer) < len(steps)


@pytest.mark.parametrize("weighted", [False, True])
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch, weighted: bool) -> None:
    monkeypatch.setattr(bound, "_EDGES_PER_RANGE", 10)
    old, new = (random_graph(seed, n_nodes=200, weighted=weighted) for seed in (1, 2))
    results = []
    for threads in (1, 5):
        moved, named = changed_rows(old, new, threads=threads)
        bounds = change_bounds(old, moved, FingerprintParams(), slack=1e-6, threads=threads)
        results.append((moved.tobytes(), named.tobytes(), bounds.tobytes()))
    assert results[0] == results[1]


def test_a_limit_that_no_walk_reaches_is_none() -> None:
    old, new = random_graph(1), random_graph(2)
    moved, _ = changed_rows(old, new)
    limited, free = (
        change_bounds(old, moved, FingerprintParams(max_steps=max_steps), slack=1e-6)
        for max_steps in (1 << 20, None)
    )
    np.testing.assert_array_equal(limited, free)


def test_restart_probability_is_that_of_the_walks() -> None:
    params = FingerprintParams(restart_prob=0.1)
    assert walked_restart_prob(params) == 104858 / 2**20
