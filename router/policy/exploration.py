"""How often to try what does not look best, with the probability of each choice.

Every strategy is a map from estimates to a probability for each candidate. The choice is then drawn from
these very probabilities, so what is logged as propensity is exact, for Thompson sampling too, whose
probabilities are integrals: an error of the quadrature changes the strategy by that much, never the
agreement between strategy and log. Off-policy estimates divide by these numbers (Li et al., "Unbiased
offline evaluation of contextual-bandit-based news article recommendation algorithms", WSDM 2011).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from router.errors import ParameterError

_TAIL = 5.0  # standard deviations; beyond lies 3e-7 of a normal distribution
# Shares of the largest value's distribution at which it is cut, finer towards both ends: 24 cells.
_EVEN = np.linspace(0.0, 1.0, 25)
_LEVELS = 0.5 - 0.5 * np.cos(math.pi * _EVEN)
_LARGEST_CELL = 0.08
_MAX_PASSES = 8


class Exploration(Protocol):
    """A strategy."""

    def propensities(
        self, values: NDArray[np.float64], sds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Probability of choosing each candidate.

        Parameters
        ----------
        values
            Estimated values of the candidates, best first, float64 [n], n ≥ 1.
        sds
            Standard deviations of the estimates, float64 [n], or None where unknown.

        Returns
        -------
        float64 [n]
            Sums to 1.

        Raises
        ------
        ParameterError
            The strategy needs standard deviations and there are none, or one is negative or not finite.
        """


@dataclass(frozen=True, slots=True)
class Greedy:
    """Always the best."""

    def propensities(
        self, values: NDArray[np.float64], sds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """1 for the first candidate; see :meth:`Exploration.propensities`."""
        result = np.zeros(len(values))
        result[0] = 1.0
        return result


@dataclass(frozen=True, slots=True)
class EpsilonGreedy:
    """With probability ε any candidate, all alike; else the best.

    Parameters
    ----------
    epsilon
        Between 0 and 1.

    Raises
    ------
    ParameterError
        It is not.
    """

    epsilon: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise ParameterError(f"'epsilon' must be between 0 and 1 (got {self.epsilon})")

    def propensities(
        self, values: NDArray[np.float64], sds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """1 - ε + ε/n for the first candidate, ε/n for the others; see :meth:`Exploration.propensities`."""
        result = np.full(len(values), self.epsilon / len(values))
        result[0] += 1.0 - self.epsilon
        return result


@dataclass(frozen=True, slots=True)
class Thompson:
    """Each candidate as often as it would come out best if its value were drawn from its posterior.

    Posteriors are independent normal distributions (Thompson, "On the likelihood that one unknown
    probability exceeds another in view of the evidence of two samples", Biometrika 1933). Probabilities are
    within 0.003 of the integrals, and within 0.04 where one posterior is a thousand times as wide as another.

    Parameters
    ----------
    scale
        Positive factor on the standard deviations: above 1 explores more.

    Raises
    ------
    ParameterError
        It is not positive and finite.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ParameterError(f"'scale' must be positive and finite (got {self.scale})")

    def propensities(
        self, values: NDArray[np.float64], sds: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """P(candidate i draws the largest value); see :meth:`Exploration.propensities`."""
        if sds is None:
            raise ParameterError("Thompson sampling needs standard deviations of the scores ('score_sds')")
        smallest, largest = float(sds.min()), float(sds.max())
        if not 0 <= smallest <= largest < math.inf:  # also refuses NaN
            raise ParameterError(f"'score_sds' must be finite and not negative (got {sds.tolist()})")
        if largest == 0:
            return Greedy().propensities(values, None)
        return _probability_of_largest(values, sds * self.scale)


def _probability_of_largest(means: NDArray[np.float64], sds: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(X_i is the largest) of independent X_i ~ N(mean_i, sd_i²), float64 [n].

    Given that the largest is x, it is X_i with probability h_i(x) / Σ_j h_j(x), where h = F' / F: averaged
    over the distribution of the largest, Π F_j, by the trapezoidal rule. Cells are moved until none holds
    much more of that distribution than it should, so that sharp and wide posteriors may stand side by side.
    """
    # A value known for sure is a step of F; a steep slope keeps it a function.
    sds = np.maximum(sds, 1e-6 * sds.max())[:, None]
    means = (means - means.max())[:, None]
    tails = _TAIL * sds
    # Below 'lowest' hardly any maximum lies, and above it no z is below -5: nothing overflows.
    lowest, highest = (means - tails).max(), (means + tails).max()
    bounds = lowest + (highest - lowest) * _EVEN
    for remaining in reversed(range(_MAX_PASSES)):
        odds, slope = _odds_against((bounds - means) / sds)
        cdf = np.exp(-np.log(odds + 1.0).sum(axis=0))
        mass = cdf[1:] - cdf[:-1]
        if not remaining or mass.max() < _LARGEST_CELL:
            break
        bounds = np.interp(_LEVELS, cdf, bounds)
    hazards = slope * odds / ((odds + 1.0) * sds)
    weights = np.zeros(len(bounds))
    weights[1:] += mass
    weights[:-1] += mass
    wins: NDArray[np.float64] = hazards @ (weights / hazards.sum(axis=0))
    wins /= wins.sum()
    return wins


def _odds_against(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(1 - Φ) / Φ at z, and the slope of its negative logarithm.

    Φ is taken as the logistic function of 1.5976 z + 0.070566 z³, which is within 1.4e-4 of it (Bowling et
    al., "A logistic approximation to the cumulative normal distribution", JIEM 2009, section 3).
    """
    square = z * z
    slope = 0.211698 * square + 1.5976
    logit = z * (0.070566 * square + 1.5976)
    return np.exp(-logit), slope
