from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ppr.blocks import compute_block
from ppr.errors import ParameterError, StoreError, UnknownNodeError
from ppr.exact import exact_ppr
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.graph import Graph
from ppr.metrics import rag_at_k, sample_sources
from ppr.params import FingerprintParams
from ppr.verd import Verd, query, query_edges
from tests.oracles.dense import limited_ppr, solve_new_node, solve_ppr, transition
from tests.oracles.random_graphs import random_graph
from tests.oracles.rows import walk_estimates, write_store

RESTART = 0.15
FULL = FingerprintParams(restart_prob=RESTART, top_k=None, n_walks=100)


def dense(ids: NDArray[np.integer], scores: NDArray[np.floating], n_nodes: int) -> NDArray[np.float64]:
    answer = np.zeros((len(ids), n_nodes))
    for row in range(len(ids)):
        answer[row, ids[row][ids[row] >= 0]] = scores[row][ids[row] >= 0]
    return answer


def normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / rows.sum(axis=1, keepdims=True)


def exact_store(graph: Graph, out: Path) -> FingerprintStore:
    return write_store(graph, out, solve_ppr(graph, RESTART), FULL)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_exact_rows_compose_to_the_exact_answer(tmp_path: Path, weighted: bool, steps: int) -> None:
    graph = random_graph(1, weighted=weighted)
    store = exact_store(graph, tmp_path / "out")
    answer = dense(*query(graph, store, np.arange(60), steps=steps, epsilon=0.0), 60)
    # Stored scores are float32.
    np.testing.assert_allclose(answer, normalised(solve_ppr(graph, RESTART)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_formula_with_arbitrary_rows(tmp_path: Path, steps: int) -> None:
    graph = random_graph(2, weighted=True)
    rows = np.random.default_rng(0).random((60, 60)) / 60
    store = write_store(graph, tmp_path / "out", rows, FULL)
    answer = dense(*query(graph, store, np.arange(60), steps=steps, epsilon=0.0), 60)
    moved = np.linalg.matrix_power((1 - RESTART) * transition(graph), steps)
    stopped = limited_ppr(graph, RESTART, steps - 1) if steps else np.zeros((60, 60))
    expected = stopped + moved @ rows
    np.testing.assert_allclose(answer, normalised(expected), rtol=1e-6, atol=1e-12)


def test_error_is_within_the_margin_of_the_walks(tmp_path: Path) -> None:
    graph = random_graph(3, n_nodes=80, weighted=True)
    truth = solve_ppr(graph, RESTART)
    n_walks = 100
    rows = walk_estimates(graph, np.arange(80), restart_prob=RESTART, n_walks=n_walks, seed=5)
    store = write_store(graph, tmp_path / "out", rows, FULL)
    for steps in (1, 2):
        answer = dense(*query(graph, store, np.arange(80), steps=steps, epsilon=0.0), 80)
        # The variance of a row's estimate is at most 2 p(v) / R; rows are independent, so their variances
        # enter with the squared weight of the row. The normaliser moves by the same relative amount.
        weights = np.linalg.matrix_power((1 - RESTART) * transition(graph), steps)
        deviation = np.sqrt(weights**2 @ (2 * truth / n_walks))
        total = truth.sum(axis=1, keepdims=True)
        total_deviation = np.sqrt(weights**2 @ (2 * total / n_walks))
        margin = 6 * (deviation + truth / total * total_deviation) / total
        error = np.abs(answer - truth / total)
        assert (error <= margin + 1e-7).all()
        assert error[3].sum() > 1e-4  # the estimate is one: nothing was solved exactly


def test_each_step_lowers_the_error(tmp_path: Path) -> None:
    graph = random_graph(4, n_nodes=80)
    truth = normalised(solve_ppr(graph, RESTART))
    rows = walk_estimates(graph, np.arange(80), restart_prob=RESTART, n_walks=100, seed=6)
    store = write_store(graph, tmp_path / "out", rows, FULL)
    errors = [
        np.abs(dense(*query(graph, store, np.arange(80), steps=steps), 80) - truth).sum(axis=1).mean()
        for steps in (0, 1, 2, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] / 2


def test_rows_cut_to_the_top_keep_the_head(tmp_path: Path) -> None:
    graph = random_graph(5, n_nodes=200, degree=4)
    truth = solve_ppr(graph, RESTART)
    rows = walk_estimates(graph, np.arange(200), restart_prob=RESTART, n_walks=100, seed=7)
    whole = write_store(graph, tmp_path / "whole", rows, FULL)
    cut_params = FingerprintParams(restart_prob=RESTART, top_k=20, n_walks=100)
    cut = write_store(graph, tmp_path / "cut", rows, cut_params)
    ids, scores = query(graph, cut, np.arange(200), steps=2, epsilon=0.0, k=10)
    assert rag_at_k(truth, ids, 10).mean() > 0.98
    # The normaliser is that of complete rows: what is left is no more than the complete answer has.
    complete = dense(*query(graph, whole, np.arange(200), steps=2, epsilon=0.0), 200)
    assert (dense(ids, scores, 200) <= complete + 1e-9).all()
    assert dense(*query(graph, cut, np.arange(200), steps=2, epsilon=0.0), 200).sum(axis=1).max() <= 1 + 1e-6


@pytest.mark.parametrize("weights", [None, [1.0, 2.5, 0.5, 1.0]])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_new_node_equals_the_graph_with_it_added(
    tmp_path: Path, weights: list[float] | None, steps: int
) -> None:
    graph = random_graph(6, weighted=True)
    store = exact_store(graph, tmp_path / "out")
    neighbors = [9, 4, 30, 9]  # 9 twice: its weights are summed
    expected = solve_new_node(graph, neighbors, weights or [1.0] * 4, RESTART)
    answer = query_edges(graph, store, [(neighbors, weights)], steps=steps, epsilon=0.0)
    np.testing.assert_allclose(dense(*answer, 60)[0], expected, rtol=1e-6, atol=1e-12)
    exact = query_edges(graph, store, [(neighbors, weights)], method="exact")
    np.testing.assert_allclose(dense(*exact, 60)[0], expected, atol=1e-9)


def test_new_node_does_not_depend_on_the_order_of_its_edges(tmp_path: Path) -> None:
    graph = random_graph(6, weighted=True)
    store = exact_store(graph, tmp_path / "out")
    answers = query_edges(graph, store, [([9, 4, 30], [1.0, 2.0, 3.0]), ([30, 9, 4], [3.0, 1.0, 2.0])], k=20)
    for values in answers:
        np.testing.assert_array_equal(values[0], values[1])


def test_exact_method(tmp_path: Path) -> None:
    graph = random_graph(7)
    store = exact_store(graph, tmp_path / "out")
    answer = dense(*query(graph, store, [0, 1, 2, 9], method="exact"), 60)
    expected = normalised(solve_ppr(graph, RESTART))[[0, 1, 2, 9]]
    np.testing.assert_allclose(answer, expected, atol=1e-9)


def test_answers_are_ranked_and_padded(tmp_path: Path) -> None:
    graph = random_graph(8)
    store = exact_store(graph, tmp_path / "out")
    nodes = [0, 1, 2, 30]
    all_ids, all_scores = query(graph, store, nodes)
    for row, (ids, scores) in enumerate(zip(all_ids, all_scores, strict=True)):
        n_found = np.count_nonzero(ids >= 0)
        assert np.lexsort((ids[:n_found], -scores[:n_found])).tolist() == list(range(n_found))
        assert (ids[n_found:] == -1).all()
        assert (scores[n_found:] == 0).all()
        for k in (1, 7, 100):
            first_ids, first_scores = query(graph, store, nodes[row : row + 1], k=k)
            assert first_ids.shape == (1, k)
            keep = min(k, n_found)
            assert first_ids[0, :keep].tolist() == ids[:keep].tolist()
            assert first_scores[0, :keep].tolist() == scores[:keep].tolist()
            assert (first_ids[0, keep:] == -1).all()
    assert all_ids[1].tolist()[:2] == [1, -1]  # dangling: only itself
    assert all_scores[2, 0] == pytest.approx(1.0)  # isolated


def test_threads_and_batches_do_not_change_bits(tmp_path: Path) -> None:
    graph = random_graph(9, n_nodes=100, weighted=True)
    store = exact_store(graph, tmp_path / "out")
    one = query(graph, store, np.arange(100), k=15, threads=1)
    three = query(graph, store, np.arange(100), k=15, threads=3)
    alone = [query(graph, store, [node], k=15) for node in range(100)]
    for values, other, single in zip(one, three, zip(*alone, strict=True), strict=True):
        np.testing.assert_array_equal(values, other)
        np.testing.assert_array_equal(values, np.concatenate(single))


@pytest.mark.parametrize("epsilon", [1e-5, 2e-3, 0.5])
def test_small_values_are_answered_from_their_rows(tmp_path: Path, epsilon: float) -> None:
    """With exact rows nothing is lost, however early a row takes the place of further steps."""
    graph = random_graph(10, n_nodes=200)
    store = exact_store(graph, tmp_path / "out")
    exact = normalised(solve_ppr(graph, RESTART))
    answer = dense(*query(graph, store, np.arange(200), steps=3, epsilon=epsilon), 200)
    np.testing.assert_allclose(answer, exact, atol=1e-6)


def test_hub_keeps_its_mass(tmp_path: Path) -> None:
    """A hub hands on less than epsilon over each edge; its answer is its own row."""
    n_leaves = 300
    indptr = np.concatenate([[0], n_leaves + np.arange(n_leaves + 1)])
    indices = np.concatenate([np.arange(1, n_leaves + 1), np.zeros(n_leaves, np.int64)])
    graph = Graph.from_arrays(indptr, indices)
    store = exact_store(graph, tmp_path / "out")
    answer = dense(*query(graph, store, [0], steps=2, epsilon=1e-2), graph.n_nodes)
    np.testing.assert_allclose(answer, normalised(solve_ppr(graph, RESTART))[:1], atol=1e-6)


def test_mass_that_underflows_does_not_corrupt_the_answer(tmp_path: Path) -> None:
    n = 60
    graph = Graph.from_arrays(np.arange(n + 1) * n, np.tile(np.arange(n), n))
    params = replace(FULL, restart_prob=0.999)
    store = write_store(graph, tmp_path / "out", solve_ppr(graph, 0.999), params)
    ids, scores = query(graph, store, [0, 1], steps=150, epsilon=0.0)
    assert ids[:, 0].tolist() == [0, 1]
    assert sorted(ids[0]) == list(range(n))
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, rtol=1e-12)


def test_nodes_without_a_row_are_named(tmp_path: Path) -> None:
    graph = random_graph(11)
    has_row = np.flatnonzero(np.arange(60) != 0)
    store = write_store(graph, tmp_path / "out", solve_ppr(graph, RESTART)[has_row], FULL, has_row)
    verd = Verd(graph, store, steps=0)
    with pytest.raises(UnknownNodeError, match="node 0 has no fingerprint"):
        verd.answer(0)
    before = verd.answer(5)
    with pytest.raises(UnknownNodeError):
        verd.answer(0)
    for values, again in zip(before, verd.answer(5), strict=True):  # an error leaves no trace
        np.testing.assert_array_equal(values, again)
    ids, _ = query(graph, store, [1], k=1)  # reaches rows that are there
    assert ids.tolist() == [[1]]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"max_steps": 3}, "limited to 3 steps"),
        ({"target_kinds": ("node",)}, "hold only some kinds"),
        ({"exclude_neighbors": True}, "leave out the source's neighbours"),
    ],
)
def test_rows_that_cannot_be_composed_are_refused(
    tmp_path: Path, changed: dict[str, object], reason: str
) -> None:
    graph = random_graph(12)
    params = FingerprintParams(restart_prob=RESTART, top_k=None, **changed)
    store = write_store(graph, tmp_path / "out", solve_ppr(graph, RESTART), params)
    assert not store.composable
    for ask in (lambda: query(graph, store, [0]), lambda: query_edges(graph, store, [([0], None)])):
        with pytest.raises(ParameterError, match=reason):
            ask()


def test_bad_queries(tmp_path: Path) -> None:
    graph = random_graph(13)
    store = exact_store(graph, tmp_path / "out")
    with pytest.raises(UnknownNodeError, match="node 60 is not in the graph"):
        query(graph, store, [0, 60])
    with pytest.raises(ParameterError, match=r"'steps' must not be negative \(got -1\)"):
        query(graph, store, [0], steps=-1)
    with pytest.raises(ParameterError, match=r"'epsilon' must be at least 0 and below 1 \(got nan\)"):
        query(graph, store, [0], epsilon=float("nan"))
    with pytest.raises(ParameterError, match=r"'k' must be positive \(got 0\)"):
        query(graph, store, [0], k=0)
    with pytest.raises(ParameterError, match=r"'threads' must be positive \(got 0\)"):
        query(graph, store, [0], threads=0)
    with pytest.raises(StoreError, match="another graph"):
        query(random_graph(14), store, [0])
    with pytest.raises(StoreError, match="another graph"):
        query(random_graph(14), store, [0], method="exact")
    for edges, message in (
        (([], None), "at least one edge"),
        (([1, 2], [1.0]), "one weight per edge"),
        (([1, 2], [1.0, 0.0]), r"edge 1: 'weight' must be positive and finite \(got 0.0\)"),
        (([1, 2], [float("inf"), 1.0]), "edge 0: 'weight' must be positive"),
    ):
        with pytest.raises(ParameterError, match=message):
            query_edges(graph, store, [edges])
    with pytest.raises(ParameterError, match="'steps' must be positive for a new node"):
        query_edges(graph, store, [([1], None)], steps=0)
    with pytest.raises(UnknownNodeError, match="node -1 is not in the graph"):
        query_edges(graph, store, [([1, -1], None)])


def test_no_queries_give_no_answers(tmp_path: Path) -> None:
    graph = random_graph(15)
    store = exact_store(graph, tmp_path / "out")
    ids, scores = query(graph, store, [], k=4)
    assert ids.shape == scores.shape == (0, 4)


def test_few_walks_suffice_on_a_real_graph(tmp_path: Path, shared_data: Path) -> None:
    with gzip.open(shared_data / "graphs" / "wiki-Vote.txt.gz") as file:
        keys, edges = np.unique(np.loadtxt(file, dtype=np.int64), return_inverse=True)
    edges = edges.reshape(-1, 2)
    edges = edges[np.lexsort((edges[:, 1], edges[:, 0]))]
    degrees = np.bincount(edges[:, 0], minlength=keys.size)
    graph = Graph.from_arrays(np.concatenate([[0], np.cumsum(degrees)]), edges[:, 1])
    sources = sample_sources(graph, per_bucket=3)
    truth = exact_ppr(graph, sources, restart_prob=RESTART)
    nodes = np.arange(graph.n_nodes, dtype=np.int32)
    for top_k, k, least in ((None, 200, 0.99), (20, 10, 0.996)):
        params = FingerprintParams(restart_prob=RESTART, n_walks=100, top_k=top_k)
        run = FingerprintRun.begin(graph, tmp_path / f"top {top_k}", params, lambda: [nodes], 1)
        assert run is not None
        with run:
            run.write_wave(0, [compute_block(graph, nodes, params)])
            store = run.finish()
        ids, _ = query(graph, store, sources, steps=2, k=k)
        assert rag_at_k(truth, ids, k).mean() >= least
