from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from router.baselines import (
    FactorRouter,
    PopularityRouter,
    TelemetryRouter,
    UserKnnRouter,
    UserTaskRouter,
    log_likelihood,
)
from router.baselines.common import log_softmax
from router.baselines.factors import _Posterior
from router.baselines.particles import best_sharpness, particle_scores
from router.baselines.telemetry import _Events, complete_features, design
from router.errors import NotFittedError, ParameterError
from router.persona import (
    ChoiceData,
    ChoiceRouter,
    Choices,
    Support,
    World,
    evaluate_warm,
    load_world,
    new_llm_data,
    new_user_data,
    warm_data,
)
from tests.oracles.persona_worlds import write_world

ROUTERS: dict[str, Callable[[], ChoiceRouter]] = {
    "popularity": PopularityRouter,
    "by query": lambda: PopularityRouter("query"),
    "user and task": UserTaskRouter,
    "knn": lambda: UserKnnRouter(15),
    "mf": lambda: FactorRouter(("task",), n_factors=3, n_iterations=300),
    "mf and queries": lambda: FactorRouter(n_factors=3, n_iterations=300),
    "bilinear": lambda: FactorRouter(("task", "embedding"), n_factors=3, n_iterations=300),
    "telemetry": TelemetryRouter,
}
PERSONAL = sorted(ROUTERS.keys() - {"popularity", "by query"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load_world(write_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def data(world: World) -> ChoiceData:
    return warm_data(world, 1, "telemetry")


def all_scores(model: ChoiceRouter, data: ChoiceData) -> NDArray[np.float32]:
    return model.scores(np.arange(data.n_users), np.arange(data.n_queries))


@pytest.mark.parametrize("name", ROUTERS)
def test_shapes_and_order(name: str, data: ChoiceData) -> None:
    model = ROUTERS[name]()
    with pytest.raises(NotFittedError, match="must be fitted"):
        model.scores(np.arange(2), np.arange(3))
    model.fit(data)
    scores = all_scores(model, data)
    assert scores.shape == (60, 36, 4)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    users, queries = np.array([5, 0, 7]), np.array([35, 2])
    np.testing.assert_allclose(model.scores(users, queries), scores[np.ix_(users, queries)], rtol=1e-5)
    none = Support(2, data.choices.take(np.empty(0, dtype=np.int64)))
    new = model.scores_new_users(none, queries)
    assert new.shape == (2, 2, 4)
    np.testing.assert_allclose(new[0], new[1])


@pytest.mark.parametrize("name", PERSONAL)
def test_personal_routers_beat_blind_ones(name: str, world: World) -> None:
    blind = evaluate_warm(world, 1, ROUTERS["by query"], "telemetry")
    ours = evaluate_warm(world, 1, ROUTERS[name], "telemetry")
    assert ours.seen.gain.mean() > blind.seen.gain.mean() + 0.05
    assert ours.new.gain.mean() > blind.new.gain.mean() + 0.05


@pytest.mark.parametrize("name", ROUTERS)
def test_renumbered_users_get_the_same_answers(name: str, data: ChoiceData) -> None:
    order = np.random.default_rng(0).permutation(data.n_users)
    renumbered = replace(data.choices, users=order[data.choices.users])
    model, other = ROUTERS[name](), ROUTERS[name]()
    model.fit(data)
    other.fit(data.with_choices(renumbered))
    scores = all_scores(model, data)
    if name in ("mf", "mf and queries", "bilinear"):
        # Another starting point for each user ends in another maximum of like quality.
        agree = scores.argmax(axis=2) == all_scores(other, data)[order].argmax(axis=2)
        assert agree.mean() > 0.85
    else:
        np.testing.assert_allclose(all_scores(other, data)[order], scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ROUTERS)
def test_an_llm_of_which_nothing_is_known_is_excluded(name: str, world: World) -> None:
    data = new_llm_data(world, 1, "telemetry", 2, n_events=0, n_probes=0)
    model = ROUTERS[name]()
    model.fit(data)
    scores = all_scores(model, data)
    assert (scores[..., 2] == -np.inf).all()
    assert np.isfinite(scores[..., [0, 1, 3]]).all()
    support = Support(2, data.choices.take(data.choices.users < 2))
    new = model.scores_new_users(support, np.arange(5))
    assert (new[..., 2] == -np.inf).all()
    assert np.isfinite(new[..., [0, 1, 3]]).all()


@pytest.mark.parametrize("name", ["mf and queries", "telemetry", "user and task"])
def test_opposite_tastes_get_different_llms(name: str, data: ChoiceData) -> None:
    """Half of the users always choose the first LLM, half the last."""
    likes = np.where(data.choices.users % 2, 3, 0)
    model = ROUTERS[name]()
    model.fit(data.with_choices(replace(data.choices, llms=likes)))
    picks = all_scores(model, data).argmax(axis=2)
    assert (picks[::2] == 0).all()
    assert (picks[1::2] == 3).all()


def test_gradient_of_the_factor_model(world: World) -> None:
    data = new_llm_data(world, 1, "choice-only", 1, n_events=300, n_probes=0)
    posterior = _Posterior(data, FactorRouter()._design(data), 2, 3.0, 0.5)
    x = posterior.start(np.random.default_rng(0))
    value, gradient = posterior.loss(x)
    rng = np.random.default_rng(1)
    for _ in range(5):
        direction = rng.normal(size=x.size)
        up, down = (posterior.loss(x + step * direction)[0] for step in (1e-2, -1e-2))
        assert (up - down) / 2e-2 == pytest.approx(float(gradient @ direction), rel=2e-2, abs=0.5)
    users, weights = posterior.split(x)
    scores = np.einsum("ud,qmd->uqm", users, posterior.pairs(weights)[..., :2])
    scores += posterior.pairs(weights)[..., 2]
    at_choice = np.where(data.choices.offered, scores[data.choices.users, data.choices.queries], -np.inf)
    chosen = log_softmax(at_choice)[np.arange(len(data.choices)), data.choices.llms]
    bias, factors = weights.reshape(-1, 4, 3)[..., 2], weights.reshape(-1, 4, 3)[..., :2]
    prior = 0.5 * (users**2).sum() + 1.5 * (factors**2).sum() + 0.25 * (bias**2).sum()
    assert value == pytest.approx(float(prior - chosen.sum()), rel=1e-4)


def test_newton_finds_the_mode_of_each_user(data: ChoiceData) -> None:
    x = design(data)
    n_features = x.shape[2]
    events = _Events.of(data.choices, data.n_users, x)
    mean, covariance = 0.1 * np.arange(n_features), np.diag(np.linspace(0.5, 2.0, n_features))
    weights = np.zeros((data.n_users, n_features))
    for _ in range(20):
        weights, spread = events.newton_step(weights, mean, covariance)
    precision = np.linalg.inv(covariance)
    for user in (0, 17):
        own = data.choices.take(data.choices.users == user)

        def loss(w: NDArray[np.float64], own: Choices = own) -> float:
            log_p = log_softmax(x[own.queries] @ w)[np.arange(len(own)), own.llms]
            return float(0.5 * (w - mean) @ precision @ (w - mean) - log_p.sum())

        best = minimize(loss, np.zeros(n_features), method="BFGS")
        np.testing.assert_allclose(weights[user], best.x, atol=2e-3)
        step = 1e-3 * np.eye(n_features)
        slopes = [
            [
                loss(weights[user] + a + b) - loss(weights[user] + a) - loss(weights[user] + b) + best.fun
                for a in step
            ]
            for b in step
        ]
        np.testing.assert_allclose(np.linalg.inv(spread[user]), np.array(slopes) / 1e-6, rtol=0.02, atol=0.02)


def test_telemetry_recovers_planted_weights(data: ChoiceData, world: World) -> None:
    model = TelemetryRouter()
    model.fit(data)
    assert model._fitted is not None
    found = model._fitted[0][:, :3]
    planted = world.users[1].weights.mean(axis=1) / 0.4
    planted[:, 0] += 0.2 / 0.4  # the part that all users share
    assert np.corrcoef(found.ravel(), planted.ravel())[0, 1] > 0.85


def test_own_posterior_of_new_users(data: ChoiceData) -> None:
    model = TelemetryRouter(new_users="posterior")
    model.fit(data)
    queries = np.arange(data.n_queries)
    support = Support(data.n_users, data.choices)
    # With a known user's choices a new one is that user: both are the mode of the same posterior.
    np.testing.assert_allclose(
        model.scores_new_users(support, queries), model.scores(np.arange(data.n_users), queries), atol=0.05
    )
    nobody = Support(1, data.choices.take(np.zeros(0, dtype=np.int64)))
    expected = design(data) @ model._law[0]
    np.testing.assert_allclose(model.scores_new_users(nobody, queries)[0], expected, atol=1e-4)


def test_missing_features_are_predicted(world: World) -> None:
    rng = np.random.default_rng(0)
    data = warm_data(world, 1, "telemetry")
    slopes = rng.normal(size=(data.query_embeddings.shape[1], 3)).astype(np.float32)
    features = np.repeat((data.query_embeddings @ slopes)[:, None], 4, axis=1)
    hidden = np.where(data.train_queries[:, None, None], features, np.float32(np.nan))
    hidden[:, 3] = np.nan
    filled = complete_features(replace(data, features=hidden))
    np.testing.assert_allclose(filled[:, :3], features[:, :3], atol=0.15)
    assert (filled[:, 3] == 0.0).all()
    with pytest.raises(ParameterError, match="telemetry track"):
        TelemetryRouter().fit(warm_data(world, 1, "choice-only"))


class Fixed:
    """Router of given scores."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self.table = scores

    def fit(self, data: ChoiceData) -> None:
        """Nothing to learn."""

    def scores(self, users: NDArray[np.int64], queries: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.table[np.ix_(users, queries)]

    def scores_new_users(self, support: Support, queries: NDArray[np.int64]) -> NDArray[np.float32]:
        raise NotImplementedError


def test_particles_equal_slow_loops(data: ChoiceData) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 36, 4)).astype(np.float32)
    known, support = new_user_data(data, 3, n_new=5)
    offered = rng.random((15, 4)) < 0.7
    offered[np.arange(15), support.choices.llms] = True
    queries = np.array([4, 35, 0])
    for choices in (support.choices, replace(support.choices, offered=offered)):
        scores = particle_scores(Fixed(table), known, replace(support, choices=choices), queries)
        for user in range(5):
            weights = []
            for v in range(55):
                weight = 1.0
                for i in np.flatnonzero(choices.users == user):
                    open_ = np.ones(4, dtype=bool) if choices.offered is None else offered[i]
                    exp = np.exp(table[v, choices.queries[i]]) * open_
                    weight *= exp[choices.llms[i]] / exp.sum()
                weights.append(weight)
            expected = np.average(table[:55][:, queries], axis=0, weights=weights)
            np.testing.assert_allclose(scores[user], expected, rtol=1e-4, atol=1e-5)


def test_features_of_users_are_used_where_they_tell_and_ignored_where_not(world: World) -> None:
    prototypes = world.users[1].prototypes
    for told, features in (
        (True, np.eye(4, dtype=np.float32)[prototypes]),
        (False, np.eye(4, dtype=np.float32)[np.random.default_rng(0).permutation(prototypes)]),
    ):
        data = warm_data(world, 1, "telemetry", user_features=features)
        known, support = new_user_data(data, 0, n_new=20)
        model = TelemetryRouter()
        model.fit(known)
        sharpness = best_sharpness(model, known)
        assert (sharpness > 1.0) == told
        with_features = model.scores_new_users(support, np.arange(36))
        without = model.scores_new_users(replace(support, user_features=None), np.arange(36))
        right = world.utilities(1)[-20:].argmax(axis=2)
        gain = (with_features.argmax(axis=2) == right).mean() - (without.argmax(axis=2) == right).mean()
        assert (gain > 0.1) if told else (abs(gain) < 0.05)


def test_log_likelihood_by_hand(data: ChoiceData) -> None:
    table = np.zeros((60, 36, 4), dtype=np.float32)
    table[..., 1] = np.log(3.0)
    choices = Choices(np.array([3, 0]), np.array([1, 1]), np.array([1, 2]))
    assert log_likelihood(Fixed(table), choices) == pytest.approx(np.log(3 / 6 * 1 / 6) / 2)
    offered = np.array([[True, True, False, False], [True, False, True, True]])
    value = log_likelihood(Fixed(table), replace(choices, offered=offered))
    assert value == pytest.approx(np.log(3 / 4 * 1 / 3) / 2)


def test_bad_parameters() -> None:
    with pytest.raises(ParameterError, match=r"'n_factors' must not be negative \(got -1\)"):
        FactorRouter(n_factors=-1)
