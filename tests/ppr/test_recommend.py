from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ppr.errors import ParameterError, StoreError, UnknownNodeError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.params import FingerprintParams
from ppr.recommend import recommend, recommend_new
from tests.oracles.dense import limited_ppr, solve_new_node, solve_ppr
from tests.oracles.random_graphs import random_graph, random_market
from tests.oracles.rows import write_store

MARKET = random_market(1)
ITEMS, USERS = np.arange(40), np.arange(40, 70)
RESTART = 0.15


def store_of(
    out: Path, rows: NDArray[np.float64], sources: NDArray[np.integer] | None = None, **changed: object
) -> FingerprintStore:
    params = FingerprintParams(restart_prob=RESTART, top_k=None, **changed)
    return write_store(MARKET, out, rows, params, sources)


@pytest.fixture
def composable(tmp_path: Path) -> FingerprintStore:
    return store_of(tmp_path / "composable", solve_ppr(MARKET, RESTART))


@pytest.fixture
def limited(tmp_path: Path) -> FingerprintStore:
    return store_of(tmp_path / "limited", limited_ppr(MARKET, RESTART, 3)[USERS], USERS, max_steps=3)


def slow_ranking(
    graph: Graph, row: NDArray[np.float64], candidates: set[int], k: int, discount: float
) -> list[tuple[int, float]]:
    """Obvious version: score, filter, sort."""
    degree = np.bincount(graph.indices, minlength=graph.n_nodes)
    scored = [(node, row[node] / degree[node] ** discount) for node in candidates if row[node] > 0]
    return sorted(scored, key=lambda entry: (-entry[1], entry[0]))[:k]


def assert_ranked(
    ids: NDArray[np.int32], scores: NDArray[np.float32], expected: list[tuple[int, float]]
) -> None:
    n_found = len(expected)
    np.testing.assert_allclose(scores[:n_found], [score for _, score in expected], rtol=2e-6)
    assert (ids[n_found:] == -1).all()
    assert (scores[n_found:] == 0).all()
    assert sorted(ids[:n_found]) == sorted(node for node, _ in expected)
    gaps = np.diff([-score for _, score in expected]) / [score for _, score in expected[1:]]
    clear = np.flatnonzero(gaps > 1e-5) + 1  # order is only certain where scores are apart
    for place in clear:
        assert set(ids[:place]) == {node for node, _ in expected[:place]}


@pytest.mark.parametrize("discount", [0.0, 0.3])
@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("method", ["rows", "verd", "exact", "limited rows", "limited exact"])
def test_equals_the_obvious_version(
    composable: FingerprintStore, limited: FingerprintStore, method: str, exclude_seen: bool, discount: float
) -> None:
    store = limited if method.startswith("limited") else composable
    truth = limited_ppr(MARKET, RESTART, 3) if method.startswith("limited") else solve_ppr(MARKET, RESTART)
    ids, scores = recommend(
        MARKET,
        store,
        USERS,
        12,
        exclude_seen=exclude_seen,
        popularity_discount=discount,
        method=method.split()[-1],
        epsilon=0.0,
    )
    assert ids.shape == scores.shape == (30, 12)
    assert (ids.dtype, scores.dtype) == (np.int32, np.float32)
    for user, user_ids, user_scores in zip(USERS, ids, scores, strict=True):
        seen = set(MARKET.indices[MARKET.indptr[user] : MARKET.indptr[user + 1]].tolist())
        candidates = set(ITEMS.tolist()) - (seen if exclude_seen else set())
        row = truth[user] / truth[user].sum()
        assert_ranked(user_ids, user_scores, slow_ranking(MARKET, row, candidates, 12, discount))


def test_auto_takes_what_the_store_allows(composable: FingerprintStore, limited: FingerprintStore) -> None:
    for store, method in ((composable, "verd"), (limited, "rows")):
        expected = recommend(MARKET, store, USERS, 5, method=method)
        for values, other in zip(recommend(MARKET, store, USERS, 5), expected, strict=True):
            np.testing.assert_array_equal(values, other)


def test_other_kinds_leave_out_the_user(composable: FingerprintStore) -> None:
    ids, _ = recommend(MARKET, composable, USERS, 70, kinds=("user",), exclude_seen=False)
    for user, found in zip(USERS, ids, strict=True):
        assert set(found[found >= 0]) == {other for other in USERS if other != user and other in found}
        assert np.count_nonzero(found >= 0) > 0
        assert user not in found
    both, _ = recommend(MARKET, composable, USERS[:3], 70, kinds=("user", "item"))
    assert {0, 1} == set(np.unique(MARKET.kind_ids[both[both >= 0]]))


def test_restricted_rows(tmp_path: Path) -> None:
    truth = solve_ppr(MARKET, RESTART)
    store = store_of(tmp_path / "out", truth, target_kinds=("item",), exclude_neighbors=True)
    ids, scores = recommend(MARKET, store, USERS, 5)
    exact_ids, exact_scores = recommend(MARKET, store, USERS, 5, method="exact")
    np.testing.assert_allclose(scores, exact_scores, rtol=1e-5)
    assert (ids == exact_ids).mean() > 0.95  # ties aside
    with pytest.raises(ParameterError, match=r"'kinds' must be among.*item \(got 'user'\)"):
        recommend(MARKET, store, USERS, 5, kinds=("user",))
    with pytest.raises(ParameterError, match="'exclude_seen' must be true"):
        recommend(MARKET, store, USERS, 5, exclude_seen=False)


@pytest.mark.parametrize("method", ["verd", "exact"])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_new_users(composable: FingerprintStore, method: str, exclude_seen: bool) -> None:
    interactions = [([5, 1, 5], [1.0, 2.0, 1.0]), ([20], None)]
    ids, scores = recommend_new(
        MARKET,
        composable,
        interactions,
        10,
        exclude_seen=exclude_seen,
        popularity_discount=0.2,
        method=method,
        epsilon=0.0,
    )
    for (items, weights), user_ids, user_scores in zip(interactions, ids, scores, strict=True):
        row = solve_new_node(MARKET, items, weights or [1.0], RESTART)
        candidates = set(ITEMS.tolist()) - (set(items) if exclude_seen else set())
        assert_ranked(user_ids, user_scores, slow_ranking(MARKET, row, candidates, 10, 0.2))


def test_new_users_need_composable_rows(limited: FingerprintStore) -> None:
    with pytest.raises(ParameterError, match="limited to 3 steps"):
        recommend_new(MARKET, limited, [([1], None)], 5)
    ids, _ = recommend_new(MARKET, limited, [([1], None)], 5, method="exact")
    assert (ids >= 0).all()


def test_directed_graphs_discount_by_in_degree(tmp_path: Path) -> None:
    graph = random_graph(3)
    store = write_store(graph, tmp_path / "out", solve_ppr(graph, RESTART), FingerprintParams(top_k=None))
    ids, scores = recommend(
        graph, store, [5], 60, kinds=("node",), exclude_seen=False, popularity_discount=1.0, method="rows"
    )
    row = solve_ppr(graph, RESTART)[5]
    expected = slow_ranking(graph, row / row.sum(), set(range(60)) - {5}, 60, 1.0)
    assert_ranked(ids[0], scores[0], expected)


def test_threads_do_not_change_bits(composable: FingerprintStore) -> None:
    one = recommend(MARKET, composable, USERS, 7, threads=1)
    for values, other in zip(one, recommend(MARKET, composable, USERS, 7, threads=3), strict=True):
        np.testing.assert_array_equal(values, other)


def test_bad_input(composable: FingerprintStore, limited: FingerprintStore) -> None:
    with pytest.raises(UnknownNodeError, match="node 70 is not in the graph"):
        recommend(MARKET, composable, [40, 70], 5)
    with pytest.raises(UnknownNodeError, match="item 3 has no fingerprint in this store; compute or refresh"):
        recommend(MARKET, limited, [40, 3], 5)
    with pytest.raises(UnknownNodeError, match="llm"):
        recommend(MARKET, composable, [40], 5, kinds=("llm",))
    with pytest.raises(ParameterError, match="at least one kind"):
        recommend(MARKET, composable, [40], 5, kinds=())
    with pytest.raises(ParameterError, match=r"'k' must be positive \(got 0\)"):
        recommend(MARKET, composable, [40], 0)
    with pytest.raises(ParameterError, match=r"'popularity_discount' must not be negative \(got -0.1\)"):
        recommend(MARKET, composable, [40], 5, popularity_discount=-0.1)
    with pytest.raises(ParameterError, match="limited to 3 steps"):
        recommend(MARKET, limited, [40], 5, method="verd")
    with pytest.raises(StoreError, match="another graph"):
        recommend(random_market(2), composable, [40], 5)
