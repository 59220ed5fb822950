from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from router.errors import DataError
from router.graph import (
    ALIKE,
    CHOSE,
    NEAR,
    REACHED,
    SERVED,
    TAKEN_BY,
    TOOK,
    WANTED,
    build_graph,
    feature_neighbours,
    known_users,
    llm_features,
    new_users,
)
from router.persona import ChoiceData, Choices, Support
from router.persona.data import UserLinks

N_USERS, N_ITEMS, N_LLMS = 60, 15, 3


def links_of(n_users: int = N_USERS, n_known: int = N_USERS, seed: int = 0) -> UserLinks:
    rng = np.random.default_rng(seed)
    return UserLinks(
        interactions=sp.csr_array(rng.poisson(0.3, (n_users, N_ITEMS)).astype(np.float32)),
        near=sp.csr_array(rng.random((n_users, n_known)) * (rng.random((n_users, n_known)) < 0.2)),
        near_items=sp.csr_array(rng.random((n_users, N_ITEMS)) * (rng.random((n_users, N_ITEMS)) < 0.4)),
        item_features=rng.normal(size=(N_ITEMS, 2)).astype(np.float32),
    )


@pytest.fixture
def data() -> ChoiceData:
    """Users, of whom the last ten have made no choice."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(8, N_LLMS, 2)).astype(np.float32)
    features[[0, 7]] = np.nan
    return ChoiceData(
        n_users=N_USERS,
        choices=Choices(
            rng.integers(N_USERS - 10, size=200), rng.integers(6, size=200), rng.integers(N_LLMS, size=200)
        ),
        tasks=np.arange(8) % 2,
        query_embeddings=rng.normal(size=(8, 4)).astype(np.float32),
        train_queries=np.arange(8) < 7,
        llm_names=("one", "two", "three"),
        llm_embeddings=np.eye(3, dtype=np.float32),
        prices_usd=np.array([[1, 2], [np.nan, 2], [1, 0]], np.float32),
        features=features,
        user_features=rng.normal(size=(N_USERS, 3)).astype(np.float32),
        links=links_of(),
    )


def counts_of(data: ChoiceData) -> np.ndarray:
    counts = np.zeros((N_USERS, N_LLMS))
    np.add.at(counts, (data.choices.users, data.choices.llms), 1)
    return counts


def test_choices_are_counted(data: ChoiceData) -> None:
    graph = build_graph(data)
    users, llms = graph[CHOSE].edge_index.numpy()
    counts = np.zeros((N_USERS, N_LLMS))
    counts[users, llms] = graph[CHOSE].edge_weight
    np.testing.assert_array_equal(counts, counts_of(data))
    assert graph[SERVED].edge_weight.sum() == 200
    assert graph.validate()


def test_outcomes_are_averaged_where_known(data: ChoiceData) -> None:
    rng = np.random.default_rng(1)
    outcomes = rng.normal(size=(200, 2)).astype(np.float32)
    outcomes[rng.random(200) < 0.5, 1] = np.nan
    graph = build_graph(data, outcomes=outcomes)
    for (user, llm), means in zip(graph[CHOSE].edge_index.T.numpy(), graph[CHOSE].edge_attr.numpy()):
        own = outcomes[(data.choices.users == user) & (data.choices.llms == llm)]
        known = own[~np.isnan(own[:, 1]), 1]
        np.testing.assert_allclose(means[0], own[:, 0].mean(), rtol=1e-5)
        np.testing.assert_allclose(means[1], known.mean() if known.size else np.nan, rtol=1e-5)


def test_tasks_have_what_was_measured_of_llms(data: ChoiceData) -> None:
    graph = build_graph(data)
    assert data.features is not None
    for (llm, task), means in zip(graph[SERVED].edge_index.T.numpy(), graph[SERVED].edge_attr.numpy()):
        expected = np.nanmean(data.features[data.tasks == task, llm], axis=0)
        np.testing.assert_allclose(means, expected, rtol=1e-5)
    odd = np.flatnonzero((data.tasks == 1) & data.train_queries)
    np.testing.assert_allclose(graph["task"].x[1], data.query_embeddings[odd].mean(axis=0), rtol=1e-5)


def test_unknown_prices_are_flagged(data: ChoiceData) -> None:
    features = llm_features(replace(data, features=None))
    np.testing.assert_array_equal(features[:, 5:], [[0, 0], [1, 0], [0, 0]])
    assert np.isfinite(llm_features(data)).all()
    assert features[1, 3] == 0.0


def test_heard_weights_sum_to_one_without_loops_or_silent_users(data: ChoiceData) -> None:
    graph = build_graph(data, n_neighbors=5)
    silent = counts_of(data).sum(axis=1) == 0
    for edge in (ALIKE, NEAR, TAKEN_BY, REACHED):
        sources, users = graph[edge].edge_index.numpy()
        assert (np.diff(users) >= 0).all()
        sums = np.bincount(users, graph[edge].edge_weight, minlength=N_USERS)
        np.testing.assert_allclose(sums[sums > 0], 1.0, rtol=1e-6)
        if edge in (ALIKE, NEAR):
            assert (sources != users).all()
            assert not silent[sources].any()
    assert silent.sum() >= 10


def test_items_know_the_part_of_each_user(data: ChoiceData) -> None:
    graph = build_graph(data)
    assert data.links is not None
    assert data.links.interactions is not None
    weights = data.links.interactions.toarray() * (counts_of(data).sum(axis=1) > 0)[:, None]
    for edge in (TAKEN_BY, REACHED):
        items, users = graph[edge].edge_index.numpy()
        np.testing.assert_allclose(graph[edge].own, weights[users, items])
    users, items = graph[TOOK].edge_index.numpy()
    np.testing.assert_allclose(graph[TOOK].edge_weight, data.links.interactions.toarray()[users, items])


def test_mass_between_users_and_llms_is_composed_of_others_choices(data: ChoiceData) -> None:
    graph = build_graph(data)
    assert data.links is not None
    assert data.links.near is not None
    near, counts = data.links.near.toarray(), counts_of(data)
    np.fill_diagonal(near, 0.0)
    expected = near @ (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    composed = np.zeros((N_USERS, N_LLMS))
    llms, users = graph[WANTED].edge_index.numpy()
    composed[users, llms] = graph[WANTED].edge_weight
    np.testing.assert_allclose(composed, expected, rtol=1e-5)


def test_neighbours_are_the_most_alike() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    among = np.arange(30) % 3 != 0
    near = feature_neighbours(features, features, 5, same=True, among=among).toarray()
    affinity = features @ features.T
    np.fill_diagonal(affinity, -1.0)
    affinity[:, ~among] = -1.0
    for row, expected in zip(near, affinity):
        best = np.sort(expected)[-5:]
        np.testing.assert_allclose(np.sort(row)[-5:], best.clip(0.0), rtol=1e-5)
        assert np.count_nonzero(row) <= 5


def test_ties_do_not_add_neighbours() -> None:
    features = np.ones((9, 2), np.float32)
    near = feature_neighbours(features, features, 4, same=True).toarray()
    np.testing.assert_array_equal((near > 0).sum(axis=1), 4)
    np.testing.assert_array_equal(near[8].nonzero()[0], [0, 1, 2, 3])
    assert feature_neighbours(features, features[:0], 4, same=False).shape == (9, 0)


def test_known_users_as_new_ones_hear_the_same(data: ChoiceData) -> None:
    graph = build_graph(data, n_neighbors=5)
    near = data.links.near.toarray()  # type: ignore[union-attr]
    np.fill_diagonal(near, 0.0)
    links = replace(data.links, near=sp.csr_array(near))  # type: ignore[type-var]
    new = new_users(graph, Support(N_USERS, data.choices, data.user_features, links), n_neighbors=5)
    known = known_users(graph)
    np.testing.assert_allclose(new.x, known.x, atol=1e-6)
    for edge in (NEAR, TAKEN_BY, REACHED):
        np.testing.assert_array_equal(new.edges[edge].index, known.edges[edge].index)
        np.testing.assert_array_equal(new.edges[edge].weight, known.edges[edge].weight)


def test_links_must_belong_to_the_users(data: ChoiceData) -> None:
    with pytest.raises(DataError, match=r"'interactions' must have a row for each of 60 users"):
        replace(data, links=links_of(n_users=50, n_known=60))
    with pytest.raises(DataError, match=r"'near' must have 60 columns \(got 50\)"):
        replace(data, links=links_of(n_known=50))
    with pytest.raises(DataError, match=r"'links' must agree on the number of items \(got \[4, 15\]\)"):
        replace(data, links=replace(links_of(), item_features=np.zeros((4, 2), np.float32)))
    with pytest.raises(DataError, match=r"'near' must hold finite weights of at least 0"):
        replace(data, links=UserLinks(near=sp.csr_array(np.full((60, 60), np.nan))))


def test_new_users_must_belong_to_the_graph(data: ChoiceData) -> None:
    graph = build_graph(data)
    nothing = data.choices.take(np.zeros(200, dtype=bool))
    with pytest.raises(DataError, match=r"'near' must have a column for each of 60 known users \(got 50\)"):
        new_users(graph, Support(4, nothing, None, links_of(n_users=4, n_known=50)))
    fewer = UserLinks(interactions=sp.csr_array((4, 9)))
    with pytest.raises(DataError, match=r"'interactions' must have a column for each of 15 known items"):
        new_users(graph, Support(4, nothing, None, fewer))
    with pytest.raises(DataError, match=r"'user_features' must have 3 columns \(got 2\)"):
        new_users(graph, Support(4, nothing, np.zeros((4, 2), np.float32)))
    with pytest.raises(DataError, match=r"'outcomes' must have 200 rows \(got 3\)"):
        build_graph(data, outcomes=np.zeros((3, 1), np.float32))
