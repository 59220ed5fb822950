"""The closed forms against their formulas in dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from router.errors import DataError, ParameterError
from router.items import Cooccurrence, ItemMap, LowPass, NeighborRidge, blend, check_interactions


def visits(seed: int = 0, n_users: int = 60, n_items: int = 25) -> sp.csr_array:
    """Random visits; item 7 has none, user 3 has none."""
    x = (np.random.default_rng(seed).random((n_users, n_items)) < 0.2).astype(np.float32)
    x[3], x[:, 7] = 0.0, 0.0
    return sp.csr_array(x)


def dense(item_map: ItemMap) -> np.ndarray:
    return item_map.sparse.toarray() + item_map.source @ item_map.target.T


def degrees(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(x.sum(axis=1), 1.0), np.maximum(x.sum(axis=0), 1.0)


def test_cooccurrence_is_its_formula() -> None:
    x = visits().toarray()
    by_user, by_item = degrees(x)
    expected = (x.T / by_user**0.7) @ x / by_item[:, None] ** 0.9 / by_item**0.2
    np.testing.assert_allclose(dense(Cooccurrence(0.7, 0.9, 0.2).fit(visits())), expected, rtol=1e-5)


def test_cooccurrence_at_one_and_one_is_three_hops() -> None:
    x = visits().toarray()
    by_user, by_item = degrees(x)
    hops = (x / by_user[:, None]) @ (x / by_item).T @ (x / by_user[:, None])
    scores = x @ dense(Cooccurrence(1.0, 1.0, 0.0).fit(visits())) / by_user[:, None]
    np.testing.assert_allclose(scores, hops, rtol=1e-5)


def test_ridge_on_all_neighbours_is_the_normal_equations() -> None:
    x = visits().toarray().astype(np.float64)
    by_user, _ = degrees(x)
    g = (x.T / by_user**0.5) @ x
    penalty = 2.0 * np.maximum(np.diag(g), 1e-6) ** 0.3 * np.diag(g).mean() ** 0.7
    expected = np.zeros_like(g)
    for j in range(len(g)):
        others = np.delete(np.arange(len(g)), j)
        others = others[g[others, j] > 0]
        system = g[np.ix_(others, others)] + np.diag(penalty[others])
        expected[others, j] = np.linalg.solve(system, g[others, j])
    term = NeighborRidge(0.5, n_neighbors=24, penalty=2.0, penalty_exponent=0.3)
    np.testing.assert_allclose(dense(term.fit(visits())), expected, atol=1e-5)


def test_ridge_keeps_the_nearest_neighbours() -> None:
    term = NeighborRidge(0.0, n_neighbors=4, closeness_exponent=0.5)
    x = visits().toarray()
    closeness = x.T @ x / degrees(x)[1][:, None] ** 0.5
    np.fill_diagonal(closeness, 0.0)
    found = dense(term.fit(visits())) != 0.0
    for j in np.flatnonzero(x.sum(axis=0)):
        nearest = np.lexsort((np.arange(len(closeness)), -np.float32(closeness[:, j])))[:4]
        np.testing.assert_array_equal(np.flatnonzero(found[:, j]), np.sort(nearest))
    assert not found[:, 7].any()


def test_low_pass_is_a_projection_on_the_leading_singular_vectors() -> None:
    x = visits().toarray()
    by_user, by_item = degrees(x)
    _, _, vt = np.linalg.svd(x / by_user[:, None] ** 0.5 / by_item**0.4)
    projection = vt[:6].T @ vt[:6]
    expected = projection / by_item[:, None] ** 0.4 * by_item**0.2
    fitted = dense(LowPass(6, 0.5, 0.4, 0.2).fit(visits()))
    np.testing.assert_allclose(fitted, expected, atol=1e-4)


def test_low_pass_of_full_rank_gives_interactions_back() -> None:
    fitted = LowPass(1000, 0.5, 0.3, 0.3).fit(visits())
    x = visits().toarray()
    np.testing.assert_allclose(x @ dense(fitted), x, atol=1e-4)


def test_blends_are_sums_of_the_maps() -> None:
    terms = Cooccurrence(), NeighborRidge(n_neighbors=5), LowPass(4), LowPass(3, seed=1)
    maps = [term.fit(visits()) for term in terms]
    blended = blend(maps, [1.0, 0.5, -2.0, 0.25])
    expected = dense(maps[0]) + 0.5 * dense(maps[1]) - 2.0 * dense(maps[2]) + 0.25 * dense(maps[3])
    np.testing.assert_allclose(dense(blended), expected, atol=1e-5)
    rows = np.array([5, 0, 3, 5])
    scores = blended.scores(visits(), rows)
    np.testing.assert_allclose(scores, visits().toarray()[rows] @ expected, atol=1e-4)


def test_normalised_scores_have_unit_size() -> None:
    fitted = Cooccurrence().fit(visits()).normalised(visits())
    scores = visits().toarray() @ dense(fitted)
    assert np.sqrt(np.mean(scores**2)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_bad_weights_are_named(bad: float) -> None:
    x = visits().tolil()
    x[5, 11] = bad
    with pytest.raises(DataError, match=r"user 5, item 11: .* must be finite and not negative"):
        check_interactions(sp.csr_array(x))


def test_no_interactions() -> None:
    with pytest.raises(DataError, match=r"at least one interaction \(got 0\)"):
        check_interactions(sp.csr_array((4, 5)))


def test_bad_parameters() -> None:
    with pytest.raises(ParameterError, match=r"'n_neighbors' must be positive \(got 0\)"):
        NeighborRidge(n_neighbors=0)
    with pytest.raises(ParameterError, match=r"'penalty' must be positive and finite \(got 0.0\)"):
        NeighborRidge(penalty=0.0)
    with pytest.raises(ParameterError, match=r"'rank' must be positive \(got 0\)"):
        LowPass(0)
