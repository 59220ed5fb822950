from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from ppr.errors import ParameterError
from ppr.graph import Graph
from ppr.metrics import (
    HeldOut,
    accuracy,
    l1_error,
    max_error,
    ndcg_at_k,
    precision_at_k,
    rag_at_k,
    recall_at_k,
    sample_sources,
    top_k_ids,
)


def graph_of_degrees(degrees: NDArray[np.integer]) -> Graph:
    """Each node links to the first nodes, as many as its degree says."""
    indices = np.concatenate([np.arange(degree) for degree in degrees])
    return Graph.from_arrays(np.concatenate([[0], np.cumsum(degrees)]), indices)


def slow_rag(truth: list[float], ranked: list[int], k: int, exclude: int | None) -> float:
    nodes = [node for node in range(len(truth)) if node != exclude]
    returned = [node for node in ranked if node not in (-1, exclude)][:k]
    best = sorted((truth[node] for node in nodes), reverse=True)[:k]
    return sum(truth[node] for node in returned) / sum(best)


def slow_precision(truth: list[float], ranked: list[int], k: int, exclude: int | None) -> float:
    nodes = [node for node in range(len(truth)) if node != exclude]
    returned = [node for node in ranked if node not in (-1, exclude)][:k]
    best = sorted((truth[node] for node in nodes if truth[node] > 0), reverse=True)[:k]
    return sum(truth[node] >= best[-1] for node in returned) / len(best)


@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("with_source", [False, True])
def test_accuracy_equals_slow_loops(k: int, with_source: bool) -> None:
    rng = np.random.default_rng(k)
    truth = rng.integers(0, 6, size=(20, 30)) / 8.0  # many ties and zeros
    truth[:, 0] = 1.0
    ranked = np.stack([rng.permutation(30)[:15] for _ in range(20)])
    ranked[3, 8:] = -1
    sources = rng.integers(30, size=20)
    exclude = None if with_source else sources
    for fast, slow in ((rag_at_k, slow_rag), (precision_at_k, slow_precision)):
        expected = [
            slow(list(truth[i]), list(ranked[i]), k, None if with_source else int(sources[i]))
            for i in range(20)
        ]
        np.testing.assert_allclose(fast(truth, ranked, k, exclude=exclude), expected)
    means = accuracy(truth, ranked, sources, ks=(k,))
    name = f"rag@{k}_with_source" if with_source else f"rag@{k}"
    assert means[name] == pytest.approx(rag_at_k(truth, ranked, k, exclude=exclude).mean())


def test_accuracy_by_hand() -> None:
    truth = np.array([[0.5, 0.2, 0.2, 0.1, 0.0]])
    ranked = np.array([[0, 3, 2, -1]])
    assert rag_at_k(truth, ranked, 2)[0] == pytest.approx(0.6 / 0.7)
    assert rag_at_k(truth, ranked, 2, exclude=[0])[0] == pytest.approx(0.3 / 0.4)
    assert precision_at_k(truth, ranked, 2)[0] == 0.5
    assert precision_at_k(truth, np.array([[0, 2]]), 2)[0] == 1.0  # node 2 ties with node 1 at rank 2
    assert precision_at_k(truth, np.array([[0, 1, 2, 3, 4]]), 5)[0] == 1.0  # only four are positive
    assert precision_at_k(truth, ranked, 5)[0] == 0.75


def test_excluded_source_frees_a_rank_in_the_returned_list() -> None:
    truth = np.array([[0.6, 0.3, 0.1]])
    assert rag_at_k(truth, np.array([[0, 1, 2]]), 2, exclude=[0])[0] == 1.0
    assert rag_at_k(truth, np.array([[0, 1]]), 2, exclude=[0])[0] == pytest.approx(0.75)


def test_nothing_to_find_counts_as_found() -> None:
    truth = np.array([[0.15, 0.0]])
    assert rag_at_k(truth, np.array([[0, -1]]), 1, exclude=[0])[0] == 1.0
    assert precision_at_k(truth, np.array([[0, -1]]), 1, exclude=[0])[0] == 1.0


def test_top_k_ids_equals_a_full_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 4, size=(50, 12)) / 4.0
    for k in (1, 5, 12, 20):
        for row, ids in zip(scores, top_k_ids(scores, k), strict=True):
            expected = sorted(
                (node for node in range(12) if row[node] > 0), key=lambda node: (-row[node], node)
            )
            assert ids.tolist() == (expected + [-1] * k)[:k]


def test_errors_of_estimates() -> None:
    truth, estimate = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [1.0, 0.125]])
    assert l1_error(truth, estimate).tolist() == [0.5, 0.125]
    assert max_error(truth, estimate).tolist() == [0.25, 0.125]


def test_sources_come_from_every_bucket() -> None:
    degrees = np.repeat([0, 1, 2, 3, 4, 7, 8, 15], 10)
    graph = graph_of_degrees(degrees)
    sources = sample_sources(graph, per_bucket=4, n_buckets=4, seed=0)
    assert np.array_equal(sources, np.unique(sources))
    buckets = np.floor(np.log2(degrees[sources])).astype(int)
    assert np.bincount(buckets, minlength=4).tolist() == [4, 4, 4, 4]


def test_sources_are_topped_up_from_other_nodes() -> None:
    degrees = np.concatenate([np.full(50, 1), np.full(2, 5), np.zeros(30, dtype=int)])
    sources = sample_sources(graph_of_degrees(degrees), per_bucket=5, n_buckets=4, seed=3)
    assert sources.size == 20
    assert {50, 51} <= set(sources.tolist())  # the only ones of their bucket
    assert sources.max() < 52  # never a dangling node
    few = sample_sources(graph_of_degrees(np.array([1, 1, 0])), per_bucket=5, n_buckets=4)
    assert few.tolist() == [0, 1]


def test_sources_depend_on_the_seed_alone() -> None:
    graph = graph_of_degrees(np.random.default_rng(0).integers(1, 30, size=200))
    first = sample_sources(graph, seed=1)
    assert np.array_equal(first, sample_sources(graph, seed=1))
    assert not np.array_equal(first, sample_sources(graph, seed=2))


def slow_recall(ranked: list[int], wanted: set[int], k: int) -> float:
    return len(wanted.intersection(ranked[:k])) / len(wanted)


def slow_ndcg(ranked: list[int], wanted: set[int], k: int) -> float:
    gain = sum(1 / math.log2(place + 2) for place, item in enumerate(ranked[:k]) if item in wanted)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))


@pytest.mark.parametrize("k", [1, 5, 20, 50])
def test_ranking_metrics_equal_slow_loops(k: int) -> None:
    rng = np.random.default_rng(k)
    ranked = np.stack([rng.permutation(60)[:20] for _ in range(40)])
    for row, n_candidates in zip(ranked, rng.integers(0, 21, size=40), strict=True):
        row[n_candidates:] = -1
    wanted = [set(rng.integers(80, size=rng.integers(0, 30)).tolist()) for _ in range(40)]
    wanted[0] = set()
    held_out = HeldOut.from_lists([sorted(items) for items in wanted])
    for fast, slow in ((recall_at_k, slow_recall), (ndcg_at_k, slow_ndcg)):
        expected = [
            slow(row.tolist(), items, k) if items else math.nan
            for row, items in zip(ranked, wanted, strict=True)
        ]
        np.testing.assert_allclose(fast(ranked, held_out, k), expected)


def test_repeated_held_out_items_count_once() -> None:
    held_out = HeldOut.from_lists([[4, 4, 7]])
    assert held_out.counts.tolist() == [2]
    assert recall_at_k(np.array([[4, 5]]), held_out, 2).tolist() == [0.5]


def test_bad_parameters() -> None:
    held_out = HeldOut.from_lists([[1]])
    with pytest.raises(ParameterError, match=r"'k' must be positive \(got 0\)"):
        recall_at_k(np.array([[1]]), held_out, 0)
    with pytest.raises(ParameterError, match="must have 1 rows"):
        recall_at_k(np.array([[1], [2]]), held_out, 1)
    with pytest.raises(ParameterError, match=r"'k' must be positive \(got 0\)"):
        rag_at_k(np.ones((1, 2)), np.array([[0]]), 0)
    with pytest.raises(ParameterError, match=r"'per_bucket' must be positive \(got 0\)"):
        sample_sources(graph_of_degrees(np.array([1])), per_bucket=0)
