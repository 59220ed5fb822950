"""Quality of choices against known utilities, and paired comparison of routers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.errors import ParameterError
from router.persona.data import Bools, Floats

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChoiceQuality:
    """Quality of a router's choices, a number per user, float64 [u]; NaN for users without queries.

    Attributes
    ----------
    gain
        G: Σ (utility of the choice - mean over LLMs) ÷ Σ (best utility - mean), over the user's queries.
        A random choice has 0 in expectation, the oracle 1.
    accuracy
        Share of queries where the choice is the user's best LLM.
    utility
        Mean of (utility of the choice - worst) ÷ (best - worst).
    regret
        Mean of best utility - utility of the choice, in units of utility.
    """

    gain: Doubles
    accuracy: Doubles
    utility: Doubles
    regret: Doubles

    def means(self) -> dict[str, float]:
        """Means over users."""
        return {name: float(np.nanmean(getattr(self, name))) for name in self.__slots__}

    @staticmethod
    def mean_of(parts: Iterable[ChoiceQuality]) -> ChoiceQuality:
        """Average several qualities of the same users, user by user."""
        rows = list(parts)
        return ChoiceQuality(
            *(np.mean([getattr(row, name) for row in rows], axis=0) for name in ChoiceQuality.__slots__)
        )


def choice_quality(utilities: Floats, scores: Floats, asked: Bools) -> ChoiceQuality:
    """Judge the choice of the LLM of highest score, the first of equals.

    Parameters
    ----------
    utilities, scores
        float [u, q, m].
    asked
        Which queries count for which user, bool [u, q].

    Raises
    ------
    ParameterError
        Shapes differ, or a score is NaN.
    """
    if scores.shape != utilities.shape or asked.shape != utilities.shape[:2]:
        raise ParameterError(
            f"'scores' and 'asked' must match utilities of shape {utilities.shape} "
            f"(got {scores.shape} and {asked.shape})"
        )
    if np.isnan(scores).any():
        raise ParameterError("'scores' must not be NaN")
    picked = np.take_along_axis(utilities, scores.argmax(axis=2)[..., None], axis=2)[..., 0]
    best, worst, mean = utilities.max(axis=2), utilities.min(axis=2), utilities.mean(axis=2)
    n = asked.sum(axis=1)

    def total(values: NDArray[np.floating]) -> Doubles:
        return np.asarray(np.where(asked, values, 0.0).sum(axis=1, dtype=np.float64))

    # Where all LLMs are equally good, any choice is the best.
    spread = np.where(best > worst, best - worst, 1.0)
    return ChoiceQuality(
        gain=_ratio(total(picked - mean), total(best - mean)),
        accuracy=_ratio(total(picked >= best), n),
        utility=_ratio(total(np.where(best > worst, picked - worst, 1.0) / spread), n),
        regret=_ratio(total(best - picked), n),
    )


def paired_difference(
    ours: Iterable[ArrayLike], theirs: Iterable[ArrayLike], *, n_draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference between two routers on the same users, with its 95 % bootstrap interval.

    Seeds are drawn with replacement, then users within each drawn seed.

    Parameters
    ----------
    ours, theirs
        For each user seed the metric of each user, float [u].

    Returns
    -------
    mean, low, high
        Positive where ``ours`` is higher.

    Raises
    ------
    ParameterError
        The two do not have the same seeds and users.
    """
    pairs = [
        (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
        for a, b in zip(ours, theirs, strict=True)
    ]
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        raise ParameterError("'ours' and 'theirs' must hold the same users of the same seeds")
    differences = [(a - b)[~np.isnan(a - b)] for a, b in pairs]
    rng = np.random.default_rng(seed)
    total = np.zeros(n_draws)
    for _ in differences:
        drawn = rng.integers(len(differences), size=n_draws)
        for i, d in enumerate(differences):
            rows = rng.integers(d.size, size=(np.count_nonzero(drawn == i), d.size))
            total[drawn == i] += d[rows].mean(axis=1)
    low, high = np.quantile(total / len(differences), (0.025, 0.975))
    return float(np.mean([d.mean() for d in differences])), float(low), float(high)


def _ratio(part: Doubles, whole: NDArray[Any]) -> Doubles:
    result = np.full(part.shape, np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result
