from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router.errors import NotFittedError, ParameterError
from router.evaluate import BayesRouter
from router.persona import (
    Choices,
    Support,
    World,
    evaluate_new_users,
    evaluate_warm,
    new_user_data,
    warm_data,
)
from router.persona.generate import Answers, generate_world
from router.persona.responses import FEATURES, standardise
from router.persona.simulate import user_deviations
from router.persona.world import TEMPERATURE


@pytest.fixture(scope="module")
def world() -> World:
    rng = np.random.default_rng(0)
    answers = Answers(
        tasks=("gsm8k", "mbpp") * 50,
        features=standardise(rng.normal(size=(100, 4, len(FEATURES)))),
        llm_names=tuple("abcd"),
        prices_usd=np.ones((4, 2), np.float32),
        query_embeddings=rng.normal(size=(100, 4)).astype(np.float32),
        llm_embeddings=rng.normal(size=(4, 4)).astype(np.float32),
    )
    return generate_world(answers, user_seeds=(1,), n_users=300)


def test_posterior_mean_is_that_of_importance_sampling(world: World) -> None:
    data = warm_data(world, 1, "telemetry")
    router = BayesRouter(world)
    router.fit(new_user_data(data, 0, n_new=100)[0])
    queries = np.flatnonzero(world.train_queries)
    choices = Choices(np.zeros(3, dtype=np.int64), queries[:3], np.array([0, 1, 3]))
    found = router.scores_new_users(Support(1, choices), queries)[0]
    expected = _by_sampling(world, choices)[queries] / TEMPERATURE
    differences = (found - found.mean(axis=1, keepdims=True)) - (
        expected - expected.mean(axis=1, keepdims=True)
    )
    # Laplace's approximation is off by little after three choices; expected logits spread by about 1.5.
    assert np.sqrt((differences**2).mean()) < 0.12
    without = router.scores_new_users(Support(1, choices.take(np.zeros(0, dtype=np.int64))), queries)[0]
    prior = world.base[queries] / TEMPERATURE  # all else is centred under the prototypes' frequencies
    np.testing.assert_allclose(without, prior, atol=1e-4)


def _by_sampling(world: World, choices: Choices, n: int = 60_000) -> np.ndarray:
    """E U of a user with these choices, by weighing users drawn from the law, [q, m]."""
    rng = np.random.default_rng(1)
    own, by_domain, bias_sd = user_deviations(world)
    k = rng.choice(world.prototype_shares.size, size=n, p=world.prototype_shares)
    domains, f = world.prototype_domain_weights.shape[1:]
    weights = world.prototype_weights[k][:, None] + world.prototype_domain_weights[k]
    weights = weights + rng.normal(0, own, (n, 1, f)) + rng.normal(0, by_domain, (n, domains, f))
    bias = world.prototype_llm_bias[k] + rng.normal(0, bias_sd, (n, len(world.llm_names)))
    log_weight = np.zeros(n)
    for q, m in zip(choices.queries, choices.llms, strict=True):
        z = world.features[q].astype(np.float64)
        u = world.base[q] + world.personal_scale * (weights[:, world.domains[q]] @ z.T + bias)
        log_weight += u[:, m] / TEMPERATURE - np.log(np.exp(u / TEMPERATURE).sum(axis=1))
    share = np.exp(log_weight - log_weight.max())
    share /= share.sum()
    mean_weights, mean_bias = np.tensordot(share, weights, axes=1), share @ bias
    return world.utilities_of(mean_weights[None].astype(np.float32), mean_bias[None].astype(np.float32))[0]


def test_choices_help_and_more_of_them_help_more(world: World) -> None:
    by_k = evaluate_new_users(world, 1, lambda: BayesRouter(world), "telemetry", (0, 3, 10), n_new=100)
    seen = [by_k[k].seen.gain.mean() for k in (0, 3, 10)]
    assert seen[0] + 0.05 < seen[1] < seen[2] - 0.05
    assert evaluate_warm(world, 1, lambda: BayesRouter(world), "telemetry").seen.gain.mean() > seen[2]


def test_llms_not_on_offer_tell_nothing(world: World) -> None:
    data = warm_data(world, 1, "telemetry")
    router = BayesRouter(world)
    router.fit(data)
    queries = np.flatnonzero(world.train_queries)
    one = Choices(np.zeros(1, dtype=np.int64), queries[:1], np.array([2]))
    only = replace(one, offered=np.array([[False, False, True, False]]))
    nothing = router.scores_new_users(Support(1, one.take(np.zeros(0, dtype=np.int64))), queries)
    np.testing.assert_allclose(router.scores_new_users(Support(1, only), queries), nothing, atol=1e-6)


def test_bad_use(world: World) -> None:
    router = BayesRouter(world)
    with pytest.raises(NotFittedError):
        router.scores(np.arange(2), np.arange(2))
    with pytest.raises(ParameterError, match="'features' must be given"):
        router.fit(warm_data(world, 1, "choice-only"))
