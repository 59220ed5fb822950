"""Propensities: exact for what is drawn, and close to the integral that Thompson sampling stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from router.errors import ParameterError
from router.policy import Catalogue, EpsilonGreedy, Exploration, Greedy, Llm, Policy, Thompson
from tests.oracles.naive_policy import drawn_largest

N_DRAWS = 200_000
METHOD_ERROR = 0.003  # as Thompson states it
_RNG = np.random.default_rng(5)
SITUATIONS = {
    "two alike": ([0.0, 0.0], [1.0, 1.0]),
    "one": ([0.3], [0.2]),
    "wide beside narrow": ([0.5, 0.0], [0.1, 1.0]),
    "five": (_RNG.random(5), _RNG.random(5) + 0.05),
    "fifty, close": (_RNG.random(50), np.full(50, 0.3)),
    "fifty, apart": (_RNG.random(50), _RNG.random(50) * 0.1 + 0.01),
    "far from zero": ([1e4, 1e4 - 1], [1.0, 2.0]),
    "tiny": ([1e-9, 0.0, 0.5e-9], [1e-9, 1e-9, 2e-9]),
}


def best_first(
    means: NDArray[np.float64] | list[float], sds: NDArray[np.float64] | list[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(-np.asarray(means))
    return np.asarray(means, dtype=float)[order], np.asarray(sds, dtype=float)[order]


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_thompson_is_the_probability_of_the_largest_draw(name: str, scale: float) -> None:
    means, sds = best_first(*SITUATIONS[name])
    propensities = Thompson(scale).propensities(means, sds)
    drawn = drawn_largest(means, scale * sds, N_DRAWS, seed=1)
    margin = METHOD_ERROR + 4.5 * np.sqrt(drawn * (1 - drawn) / N_DRAWS) + 10 / N_DRAWS
    assert (np.abs(propensities - drawn) <= margin).all()
    assert math.isclose(propensities.sum(), 1.0, rel_tol=1e-12)
    assert (propensities >= 0).all()


@pytest.mark.parametrize("ratio", [1e-3, 1e-6, 0.0])
def test_thompson_beside_a_value_that_is_nearly_certain(ratio: float) -> None:
    means, sds = np.array([0.5, 0.0]), np.array([ratio, 1.0])
    propensities = Thompson().propensities(means, sds)
    expected = 0.5 * math.erfc(0.5 / math.sqrt(2))
    np.testing.assert_allclose(propensities, [1 - expected, expected], atol=0.04)


def test_thompson_on_values_sharper_than_their_rounding() -> None:
    propensities = Thompson().propensities(np.array([1e9, 1e9]), np.array([1e-9, 2e-9]))
    np.testing.assert_allclose(propensities, [0.5, 0.5], atol=0.003)


def test_thompson_without_doubt_is_greedy() -> None:
    assert Thompson().propensities(np.array([0.5, 0.5, 0.1]), np.zeros(3)).tolist() == [1, 0, 0]


def test_epsilon_greedy_is_exact() -> None:
    propensities = EpsilonGreedy(0.2).propensities(np.array([3.0, 2.0, 1.0, 0.0]), None)
    np.testing.assert_allclose(propensities, [0.85, 0.05, 0.05, 0.05], rtol=1e-15)
    assert EpsilonGreedy(0.0).propensities(np.ones(3), None).tolist() == [1, 0, 0]
    assert EpsilonGreedy(0.3).propensities(np.ones(1), None).tolist() == [1]


@pytest.mark.parametrize("exploration", [EpsilonGreedy(0.3), Thompson()])
def test_choices_are_drawn_as_logged(exploration: Exploration) -> None:
    """Shares of the choices, and an off-policy estimate of what always choosing one LLM would earn."""
    n_draws, rng = 20_000, np.random.default_rng(3)
    policy = Policy(catalogue=Catalogue(Llm(name=name) for name in "abc"), exploration=exploration)
    scores, sds, reward = [0.2, 0.9, 0.7], [0.3, 0.2, 0.4], np.array([0.1, 0.5, 0.9])
    decisions = [policy.decide(scores, score_sds=sds, rng=rng) for _ in range(n_draws)]
    propensities = decisions[0].propensities
    chosen = np.array([decision.chosen for decision in decisions])
    shares = np.bincount(chosen, minlength=3) / n_draws
    margin = 4.5 * np.sqrt(propensities * (1 - propensities) / n_draws)
    assert (np.abs(shares - propensities) <= margin).all()
    logged = np.array([decision.propensity for decision in decisions])
    for llm in range(3):
        estimate = np.mean(reward[chosen] * (chosen == llm) / logged)
        sd = reward[llm] * math.sqrt((1 / propensities[llm] - 1) / n_draws)
        assert abs(estimate - reward[llm]) <= 4.5 * sd


def test_equal_seeds_give_equal_choices() -> None:
    policy = Policy(catalogue=Catalogue(Llm(name=str(i)) for i in range(9)), exploration=EpsilonGreedy(1.0))

    def choices(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [policy.decide(np.zeros(9), rng=rng).llm for _ in range(20)]

    assert choices(1) == choices(1) != choices(2)


def test_what_a_strategy_needs() -> None:
    catalogue = Catalogue([Llm(name="a"), Llm(name="b")])
    rng = np.random.default_rng(0)
    with pytest.raises(ParameterError, match=r"'rng' must be given: EpsilonGreedy\(epsilon=0.05\) draws"):
        Policy(catalogue=catalogue, exploration=EpsilonGreedy()).decide([0, 1])
    thompson = Policy(catalogue=catalogue, exploration=Thompson())
    with pytest.raises(ParameterError, match="needs standard deviations"):
        thompson.decide([0, 1], rng=rng)
    for sds in ([0.1, -0.1], [0.1, math.nan], [math.inf, 0.1]):
        with pytest.raises(ParameterError, match="'score_sds' must be finite and not negative"):
            thompson.decide([0, 1], score_sds=sds, rng=rng)
    assert Policy(catalogue=catalogue, exploration=Greedy()).decide([0, 1]).llm == "b"


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan])
def test_bad_epsilon(epsilon: float) -> None:
    with pytest.raises(ParameterError, match="'epsilon' must be between 0 and 1"):
        EpsilonGreedy(epsilon)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_bad_scale(scale: float) -> None:
    with pytest.raises(ParameterError, match="'scale' must be positive and finite"):
        Thompson(scale)
