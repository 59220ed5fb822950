"""Ranking against brute force, new users, storing, and choosing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from router.errors import DataError, ParameterError, UnknownNameError
from router.items import (
    Cooccurrence,
    ItemMap,
    ItemRanker,
    LowPass,
    NeighborRidge,
    item_quality,
    ranker,
    search_coordinates,
    split_interactions,
)

TERMS = [(Cooccurrence(), 1.0), (NeighborRidge(n_neighbors=10), 0.5), (LowPass(6), 0.5)]


def taste_groups(seed: int = 0, n_users: int = 200, n_items: int = 60) -> sp.csr_array:
    """Four groups of users who mostly go for items of their own."""
    rng = np.random.default_rng(seed)
    own = rng.integers(4, size=n_users)[:, None] == np.arange(n_items) % 4
    return sp.csr_array((rng.random((n_users, n_items)) < np.where(own, 0.4, 0.03)).astype(np.float32))


def brute_force(scores: np.ndarray, seen: np.ndarray, k: int) -> np.ndarray:
    order = np.lexsort((np.arange(scores.size), -scores))
    ids = [item for item in order if not seen[item]][:k]
    return np.array(ids + [-1] * (k - len(ids)))


@pytest.fixture(scope="module")
def fitted() -> ItemRanker:
    return ItemRanker.fit(taste_groups(), TERMS)


def test_recommendations_are_the_best_unseen_items(fitted: ItemRanker) -> None:
    x = taste_groups().toarray()
    users = np.array([17, 3, 3, 199])
    ids, scores = fitted.recommend(users, 12)
    all_scores = fitted.item_map.scores(fitted.interactions, users)
    for row, user in enumerate(users):
        np.testing.assert_array_equal(ids[row], brute_force(all_scores[row], x[user] > 0, 12))
        np.testing.assert_allclose(scores[row], all_scores[row][ids[row]])
    with_seen, _ = fitted.recommend(users, 60, exclude_seen=False)
    np.testing.assert_array_equal(np.sort(with_seen, axis=1), np.tile(np.arange(60), (4, 1)))


def test_short_lists_are_padded_and_ties_go_by_id() -> None:
    x = sp.csr_array(np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]], dtype=np.float32))
    nothing = ItemMap.of_sparse(sp.csr_array((5, 5)))
    ids, scores = ItemRanker(nothing, x).recommend([0, 1], 4)
    np.testing.assert_array_equal(ids, [[3, 4, -1, -1], [0, 1, 2, -1]])
    np.testing.assert_array_equal(scores, np.zeros((2, 4)))


def test_no_more_is_allocated_than_there_are_items(fitted: ItemRanker) -> None:
    for ids, scores in (
        fitted.recommend([3, 5], 10**12),
        fitted.recommend_new(taste_groups()[[3, 5]], 10**12),
    ):
        assert ids.shape == scores.shape == (2, 60)
        np.testing.assert_array_equal(ids, fitted.recommend([3, 5], 60)[0])


def test_blocks_of_users_change_nothing(fitted: ItemRanker, monkeypatch: pytest.MonkeyPatch) -> None:
    users = np.arange(50)
    ids, scores = fitted.recommend(users, 10)
    monkeypatch.setattr(ranker, "_SCORES_AT_ONCE", 7 * 60)
    in_blocks = fitted.recommend(users, 10)
    np.testing.assert_array_equal(ids, in_blocks[0])
    np.testing.assert_allclose(scores, in_blocks[1], rtol=1e-5)


def test_new_users_are_answered_like_known_ones(fitted: ItemRanker) -> None:
    ids, scores = fitted.recommend(np.arange(30), 10)
    new_ids, new_scores = fitted.recommend_new(taste_groups()[:30], 10)
    np.testing.assert_array_equal(ids, new_ids)
    np.testing.assert_allclose(scores, new_scores, rtol=1e-5)


def test_users_without_items_get_the_most_frequent(fitted: ItemRanker) -> None:
    ids, _ = fitted.recommend_new(sp.csr_array((1, 60), dtype=np.float32), 5)
    frequency = taste_groups().toarray().sum(axis=0)
    np.testing.assert_array_equal(ids[0], brute_force(frequency, np.zeros(60, dtype=bool), 5))


def test_permuted_users_get_permuted_answers(fitted: ItemRanker) -> None:
    order = np.random.default_rng(1).permutation(200)
    permuted = ItemRanker.fit(taste_groups()[order], TERMS)
    ids, _ = fitted.recommend(order, 5)
    permuted_ids, _ = permuted.recommend(np.arange(200), 5)
    assert (ids == permuted_ids).mean() > 0.99  # float sums in another order may swap near ties


def test_planted_tastes_are_found(fitted: ItemRanker) -> None:
    x = taste_groups().toarray()
    group = np.stack([x[:, i::4].sum(axis=1) for i in range(4)]).argmax(axis=0)
    ids, _ = fitted.recommend(np.arange(200), 5)
    assert (ids % 4 == group[:, None]).mean() > 0.95


def test_arrays_make_the_same_ranker(fitted: ItemRanker, tmp_path: Path) -> None:
    for name, array in fitted.to_arrays().items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in tmp_path.iterdir()}
    loaded = ItemRanker.from_arrays(mapped)
    for left, right in zip(fitted.recommend([4, 5], 9), loaded.recommend([4, 5], 9), strict=True):
        np.testing.assert_array_equal(left, right)


def test_damaged_arrays(fitted: ItemRanker) -> None:
    arrays = fitted.to_arrays()
    with pytest.raises(DataError, match=r"array 'map_data' of the item ranker is missing"):
        ItemRanker.from_arrays({name: array for name, array in arrays.items() if name != "map_data"})
    with pytest.raises(DataError, match=r"must have one width"):
        ItemRanker.from_arrays(arrays | {"item.source": arrays["item.source"][:, :3]})
    with pytest.raises(DataError, match=r"'map_indptr', 'map_indices' and 'map_data' do not fit"):
        ItemRanker.from_arrays(arrays | {"map_indices": arrays["map_indices"][:-4]})


def test_bad_calls(fitted: ItemRanker) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown user 200; users go to 199"):
        fitted.recommend([0, 200], 5)
    with pytest.raises(ParameterError, match=r"'k' must be positive \(got 0\)"):
        fitted.recommend([0], 0)
    with pytest.raises(DataError, match=r"'interactions' must have 60 items \(got 59\)"):
        fitted.recommend_new(sp.csr_array((1, 59)), 5)
    with pytest.raises(ParameterError, match=r"at least one term"):
        ItemRanker.fit(taste_groups(), [])


def test_splits_take_a_share_of_each_user() -> None:
    x = taste_groups()
    train, held_out = split_interactions(x, fraction=0.3, seed=4)
    np.testing.assert_array_equal((train + held_out).toarray(), x.toarray())
    assert train.multiply(held_out).nnz == 0
    np.testing.assert_array_equal(np.diff(held_out.indptr), np.floor(0.3 * np.diff(x.indptr)))
    again, _ = split_interactions(x, fraction=0.3, seed=4)
    np.testing.assert_array_equal(train.toarray(), again.toarray())
    with pytest.raises(ParameterError, match=r"'fraction' must be between 0 and 1"):
        split_interactions(x, fraction=1.0)
    with pytest.raises(DataError, match=r"no user has the 50 interactions"):
        split_interactions(x, fraction=0.02)


def test_quality_counts_hits() -> None:
    held_out = sp.csr_array(np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float32))

    def recommend(users: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        np.testing.assert_array_equal(users, [0, 2])
        return np.array([[0, 2], [2, 3]], dtype=np.int32), np.zeros((2, k), dtype=np.float32)

    quality = item_quality(recommend, held_out, k=2)
    assert quality.recall == pytest.approx((0.5 + 1.0) / 2)
    discount = 1 / np.log2(3)
    assert quality.ndcg == pytest.approx((1 / (1 + discount) + discount) / 2)


def test_search_moves_one_parameter_at_a_time() -> None:
    tried = []

    def value(setting: tuple[float, float]) -> float:
        tried.append(setting)
        return -((setting[0] - 2) ** 2) - (setting[1] - setting[0]) ** 2

    def change(setting: tuple[float, float], name: str, new: float) -> tuple[float, float]:
        return (new, setting[1]) if name == "a" else (setting[0], new)

    best, reached = search_coordinates((0.0, 0.0), {"a": (0.0, 1.0, 3.0), "b": (1.0, 2.0)}, change, value)
    assert best == (1.0, 1.0)
    assert reached == -1.0
    assert tried == [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (1.0, 1.0), (1.0, 2.0)]


def test_gowalla_on_validation(shared_data: Path) -> None:
    """Co-occurrence with exponents between those of RP³β and of the linear filter beats the former."""
    from router.loaders import read_square_adjacency

    everything = read_square_adjacency(shared_data / "gowalla" / "s_adj_mat.npz", 29_858)
    train, held_out = split_interactions(everything, fraction=0.2, seed=0)
    users = np.arange(0, 29_858, 15)
    ours, rp3beta = (
        item_quality(ItemRanker.fit(train, [(term, 1.0)]).recommend, held_out, users=users)
        for term in (Cooccurrence(), Cooccurrence(1.0, 1.0, 0.1))
    )
    assert rp3beta.recall > 0.19
    assert ours.recall > rp3beta.recall + 0.005
    assert ours.ndcg > rp3beta.ndcg + 0.003
