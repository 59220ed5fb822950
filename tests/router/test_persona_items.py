from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from router.errors import ParameterError
from router.persona import World, load_world
from router.persona.items import item_world, spectral_features, taste_clusters
from tests.oracles.persona_worlds import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load_world(write_world(tmp_path_factory.mktemp("world"), per_task=30))


def block_interactions(seed: int = 0) -> tuple[sp.csr_array, np.ndarray]:
    """Four groups of users, each with items of its own, and a few visits elsewhere."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(4, size=400)
    own = groups[:, None] == np.arange(120) % 4
    visits = rng.random((400, 120)) < np.where(own, 0.4, 0.02)
    return sp.csr_array(visits.astype(np.float64)), groups


def test_clusters_are_the_planted_groups() -> None:
    interactions, groups = block_interactions()
    clusters = taste_clusters(interactions, n_clusters=4, rank=4)
    table = np.zeros((4, 4))
    np.add.at(table, (clusters, groups), 1)
    assert table.max(axis=1).sum() > 0.98 * groups.size
    np.testing.assert_array_equal(clusters, taste_clusters(interactions, n_clusters=4, rank=4))


def test_spectral_features_span_the_leading_singular_space() -> None:
    interactions, _ = block_interactions()
    interactions = interactions.tolil()
    interactions[7] = 0.0
    interactions = sp.csr_array(interactions)
    features = spectral_features(interactions, rank=5)
    dense = interactions.toarray()
    by_user, by_item = (np.maximum(dense.sum(axis=axis), 1.0) for axis in (1, 0))
    u, s, _ = np.linalg.svd(dense / np.sqrt(np.outer(by_user, by_item)))
    expected = u[:, :5] * s[:5]
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(features @ features.T, expected @ expected.T, atol=1e-4)
    np.testing.assert_allclose(np.delete(np.linalg.norm(features, axis=1), 7), 1.0, rtol=1e-5)
    assert (features[7] == 0.0).all()


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_prototypes_follow_the_clusters_as_often_as_rho_says(world: World, rho: float) -> None:
    clusters = np.random.default_rng(0).integers(4, size=5000)
    given = item_world(world, 3, clusters, rho=rho, n_users=2000)
    prototypes = given.world.of_seed(3).prototypes
    assert np.unique(given.item_users).size == 2000
    table = np.zeros((4, 4))
    np.add.at(table, (clusters[given.item_users], prototypes), 1)
    follow = table.max(axis=1).sum() / 2000
    # By chance a quarter of the rest have the cluster's prototype too.
    assert follow == pytest.approx(rho + (1 - rho) / 4, abs=0.05)
    if rho == 1.0:
        assert np.unique(table.argmax(axis=1)).size == 4


def test_bad_parameters(world: World) -> None:
    with pytest.raises(ParameterError, match=r"'rho' must lie in 0..1 \(got 1.5\)"):
        item_world(world, 1, np.zeros(9, dtype=np.int64), rho=1.5)
    with pytest.raises(ParameterError, match=r"'clusters' must lie in 0..3 \(got 4\)"):
        item_world(world, 1, np.arange(5), rho=0.5)
