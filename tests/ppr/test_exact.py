from __future__ import annotations

import numpy as np
import pytest

from ppr.errors import ParameterError, UnknownNodeError
from ppr.exact import exact_answers, exact_answers_edges, exact_ppr, exact_ppr_from
from tests.oracles.dense import limited_ppr, solve_new_node, solve_ppr, solve_ppr_with_returns
from tests.oracles.random_graphs import random_graph


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("restart_prob", [0.05, 0.15, 0.7])
def test_equals_the_linear_solve(weighted: bool, restart_prob: float) -> None:
    graph = random_graph(1, n_nodes=150, weighted=weighted)  # more sources than one block of columns
    exact = exact_ppr(graph, np.arange(150), restart_prob=restart_prob)
    assert np.abs(exact - solve_ppr(graph, restart_prob)).sum(axis=1).max() <= 1e-10


def test_tolerance_bounds_the_error() -> None:
    graph = random_graph(2)
    error = np.abs(exact_ppr(graph, [0, 5], restart_prob=0.2, tol=1e-3) - solve_ppr(graph, 0.2)[[0, 5]])
    assert 1e-10 < error.sum(axis=1).max() <= 1e-3


def test_step_limit() -> None:
    graph = random_graph(3, weighted=True)
    for max_steps in (0, 1, 3):
        exact = exact_ppr(graph, [0, 7], restart_prob=0.15, max_steps=max_steps)
        np.testing.assert_allclose(exact, limited_ppr(graph, 0.15, max_steps)[[0, 7]], atol=1e-14)


def test_normalised_rows_are_those_with_dangling_nodes_linked_back() -> None:
    graph = random_graph(4, weighted=True)
    exact = exact_ppr(graph, np.arange(10), restart_prob=0.15)
    assert exact[5].sum() < 1  # mass ends at the dangling node
    for source, row in enumerate(exact):
        expected = solve_ppr_with_returns(graph, source, 0.15)
        np.testing.assert_allclose(row / row.sum(), expected, atol=1e-9)


def test_dangling_and_isolated_sources_keep_only_themselves() -> None:
    exact = exact_ppr(random_graph(5), [1, 2], restart_prob=0.15)
    np.testing.assert_array_equal(exact[[0, 1], [1, 2]], 0.15)
    np.testing.assert_allclose(exact.sum(axis=1), 0.15)


def test_starting_distribution_is_linear() -> None:
    graph = random_graph(6)
    start = np.random.default_rng(0).random((3, graph.n_nodes))
    mixed = exact_ppr_from(graph, start, restart_prob=0.3)
    np.testing.assert_allclose(mixed, start @ solve_ppr(graph, 0.3), atol=1e-9)


def test_answers_are_normalised() -> None:
    graph = random_graph(7)
    truth = solve_ppr(graph, 0.15)
    for node, (ids, scores) in zip(
        [0, 1, 9], exact_answers(graph, [0, 1, 9], restart_prob=0.15), strict=True
    ):
        np.testing.assert_allclose(scores, (truth[node] / truth[node].sum())[ids], atol=1e-9)
        assert scores.sum() == pytest.approx(1.0)


def test_new_node_equals_the_graph_with_it_added() -> None:
    graph = random_graph(8, weighted=True)
    ((ids, scores),) = exact_answers_edges(graph, [([4, 9, 4], [1.0, 2.0, 3.0])], restart_prob=0.15)
    answer = np.zeros(graph.n_nodes)
    answer[ids] = scores
    np.testing.assert_allclose(answer, solve_new_node(graph, [4, 9, 4], [1, 2, 3], 0.15), atol=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"restart_prob": 0.0}, "'restart_prob' must be between 0 and 1"),
        ({"restart_prob": float("nan")}, "'restart_prob' must be between 0 and 1"),
        ({"tol": 0.0}, "'tol' must be positive"),
        ({"max_steps": -1}, "'max_steps' must not be negative"),
    ],
)
def test_bad_parameters(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        exact_ppr(random_graph(1), [0], **({"restart_prob": 0.15} | changed))


@pytest.mark.parametrize("node", [-1, 60])
def test_unknown_source(node: int) -> None:
    with pytest.raises(UnknownNodeError, match=f"node {node} is not in the graph"):
        exact_ppr(random_graph(1), [0, node], restart_prob=0.15)


def test_step_limit_of_a_new_node_counts_the_move_over_its_edges() -> None:
    graph = random_graph(9)
    ((ids, scores),) = exact_answers_edges(graph, [([4, 9], None)], restart_prob=0.15, max_steps=2)
    one_more_move = 0.85 * limited_ppr(graph, 0.15, 1)[[4, 9]].mean(axis=0)
    answer = np.zeros(graph.n_nodes)
    answer[ids] = scores
    np.testing.assert_allclose(answer, one_more_move / (0.15 + one_more_move.sum()), atol=1e-14)
