from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from router.errors import DataError
from router.graph import (
    CHOSE,
    NEAR,
    SERVED,
    TastePrior,
    build_graph,
    feature_neighbours,
    fit_prior,
    near_edges,
)
from router.model import Posterior, TasteModel
from router.persona import ChoiceData, Choices

N_USERS, N_TASTES = 200, 3


def data_of(features: np.ndarray | None) -> ChoiceData:
    rng = np.random.default_rng(0)
    users, queries = np.arange(400) % N_USERS, rng.integers(6, size=400)
    return ChoiceData(
        n_users=N_USERS,
        choices=Choices(users, queries, rng.integers(3, size=400)),
        tasks=np.arange(6) % 2,
        query_embeddings=np.zeros((6, 2), np.float32),
        train_queries=np.ones(6, dtype=bool),
        llm_names=("one", "two", "three"),
        llm_embeddings=np.eye(3, dtype=np.float32),
        prices_usd=np.ones((3, 2), np.float32),
        user_features=features,
    )


def tastes() -> TasteModel:
    return TasteModel(
        torch.zeros(6, 3, 3),
        torch.zeros(N_TASTES),
        torch.zeros(N_TASTES, 2),
        torch.zeros(N_TASTES, 2),
        torch.zeros(2, 3, 3),
    )


def planted(*, told: bool, seed: int = 0) -> tuple[np.ndarray, Posterior]:
    """Features, and evidence for a taste that they tell or do not tell."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(N_TASTES, size=N_USERS)
    features = (np.eye(N_TASTES)[groups] + 0.1 * rng.normal(size=(N_USERS, N_TASTES))).astype(np.float32)
    of_choices = groups if told else rng.integers(N_TASTES, size=N_USERS)
    evidence = torch.from_numpy(3.0 * np.eye(N_TASTES)[of_choices]).float()
    return features, Posterior(evidence.softmax(1), torch.zeros(N_USERS, N_TASTES, 2), evidence)


def log_prior(
    prior: TastePrior, features: np.ndarray, posterior: Posterior, near: sp.csr_array
) -> torch.Tensor:
    x = build_graph(data_of(features))["user"].x
    with torch.no_grad():
        result: torch.Tensor = prior(x, x, posterior.shares, near_edges(near, N_USERS, known=True))
    return result


def test_the_graph_counts_choices() -> None:
    data = data_of(None)
    graph = build_graph(data)
    users, llms = graph[CHOSE].edge_index.numpy()
    counts = np.zeros((N_USERS, 3))
    counts[users, llms] = graph[CHOSE].edge_weight
    expected = np.zeros_like(counts)
    np.add.at(expected, (data.choices.users, data.choices.llms), 1)
    np.testing.assert_array_equal(counts, expected)
    assert graph[SERVED].edge_weight.sum() == 400
    assert graph[NEAR].edge_index.shape == (2, 0)
    assert graph.validate()


def test_near_weights_sum_to_one_without_loops() -> None:
    near = sp.random_array((20, 20), density=0.3, rng=np.random.default_rng(0), format="csr")
    near = sp.csr_array(near + sp.eye_array(20))
    index, weights = near_edges(near, 20, known=True)
    assert (index[0] != index[1]).all()
    sums = np.bincount(index[1], weights, minlength=20)
    np.testing.assert_allclose(sums[sums > 0], 1.0, rtol=1e-6)


def test_neighbours_are_the_most_alike() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    near = feature_neighbours(features, features, 5, same=True).toarray()
    affinity = features @ features.T
    np.fill_diagonal(affinity, -1.0)
    for row, expected in zip(near, affinity):
        best = np.sort(expected)[-5:]
        np.testing.assert_allclose(np.sort(row)[-5:], best.clip(0.0), rtol=1e-5)
        assert np.count_nonzero(row) <= 5


def test_features_that_tell_the_taste_are_trusted() -> None:
    features, posterior = planted(told=True)
    near = feature_neighbours(features, features, 10, same=True)
    prior = fit_prior(tastes(), build_graph(data_of(features), near), posterior)
    guess = log_prior(prior, features, posterior, near).argmax(dim=1)
    assert (guess == posterior.log_evidence.argmax(dim=1)).float().mean() > 0.95


def test_features_that_tell_nothing_are_not_trusted() -> None:
    features, posterior = planted(told=False)
    near = feature_neighbours(features, features, 10, same=True)
    prior = fit_prior(tastes(), build_graph(data_of(features), near), posterior)
    assert log_prior(prior, features, posterior, near).exp().sub(1 / 3).abs().max() < 0.15


def test_neighbours_alone_tell_the_taste() -> None:
    features, posterior = planted(told=True)
    near = feature_neighbours(features, features, 10, same=True)
    data = replace(data_of(features), user_features=np.zeros((N_USERS, 1), np.float32))
    prior = fit_prior(tastes(), build_graph(data, near), posterior)
    guess = log_prior(prior, np.zeros((N_USERS, 1), np.float32), posterior, near).argmax(dim=1)
    assert (guess == posterior.log_evidence.argmax(dim=1)).float().mean() > 0.95


def test_a_users_own_choices_do_not_reach_its_prior() -> None:
    features, posterior = planted(told=True)
    near = sp.csr_array(feature_neighbours(features, features, 10, same=True) + sp.eye_array(N_USERS))
    prior = fit_prior(tastes(), build_graph(data_of(features), near), posterior)
    before = log_prior(prior, features, posterior, near)
    other = posterior.shares.clone()
    other[7] = other[7].roll(1)
    after = log_prior(prior, features, replace(posterior, shares=other), near)
    np.testing.assert_array_equal(after[7], before[7])
    changed = (after - before).abs().amax(dim=1) > 0
    np.testing.assert_array_equal(changed, near.toarray()[:, 7].astype(bool) & (np.arange(N_USERS) != 7))


def test_graph_and_users_must_belong_together() -> None:
    with pytest.raises(DataError, match="'near' must have a column for each of 200 known users"):
        build_graph(data_of(None), sp.csr_array((5, 5)))
