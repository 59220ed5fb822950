"""Calibration: whether predicted probabilities of choices are what they say.

An event's confidence is the probability of the LLM that is held most likely. In a calibrated router the share
of events where that LLM is chosen equals the confidence. The temperature by which logits have to be divided
to fit best says whether the router is too sure (above 1) or not sure enough (below 1). See Guo et al., "On
calibration of modern neural networks", 2017, sections 2 and 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from router.baselines.common import log_softmax
from router.errors import ParameterError
from router.persona.data import Bools

Doubles = NDArray[np.float64]
_LOG_TEMPERATURES = (-3.0, 3.0)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Reliability of predicted choices.

    Attributes
    ----------
    confidence, accuracy
        Mean confidence of the events in each bin, and the share of them where the LLM was chosen,
        float64 [b]; NaN in empty bins.
    counts
        Events in each bin, int64 [b].
    expected_error
        Mean over events of the bins' |confidence - accuracy|.
    log_likelihood
        Mean over events, in nats.
    temperature
        Temperature of the highest log-likelihood.
    log_likelihood_at_temperature
        The log-likelihood there.
    """

    confidence: Doubles
    accuracy: Doubles
    counts: NDArray[np.int64]
    expected_error: float
    log_likelihood: float
    temperature: float
    log_likelihood_at_temperature: float


def calibration(
    logits: ArrayLike, chosen: ArrayLike, *, offered: Bools | None = None, n_bins: int = 10
) -> Calibration:
    """Compare predicted with observed choices.

    Parameters
    ----------
    logits
        float [n, m].
    chosen
        LLM chosen in each event, int [n].
    offered
        LLMs on offer, bool [n, m]; all by default.
    n_bins
        Bins of equal width between 0 and 1.

    Raises
    ------
    ParameterError
        There are no events, shapes differ, a logit is NaN or +inf, or a chosen LLM has a probability of 0.
    """
    values, picks = np.array(logits, dtype=np.float64), np.asarray(chosen, dtype=np.int64)
    if values.ndim != 2 or picks.shape != values.shape[:1] or not picks.size:
        raise ParameterError(f"'logits' [n, m] and 'chosen' [n] must fit (got {values.shape}, {picks.shape})")
    if n_bins < 1:
        raise ParameterError(f"'n_bins' must be positive (got {n_bins})")
    if offered is not None:
        values[~offered] = -np.inf
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ParameterError("'logits' must be numbers or -inf")
    rows = np.arange(picks.size)
    if not np.isfinite(values[rows, picks]).all():
        raise ParameterError("'chosen' must be LLMs of finite logit (got one that is excluded)")
    log_p = log_softmax(values)
    best = np.exp(log_p.max(axis=1))
    hit = log_p.argmax(axis=1) == picks
    bins = np.minimum((best * n_bins).astype(np.int64), n_bins - 1)
    counts = np.bincount(bins, minlength=n_bins)
    confidence, accuracy = (_mean_by(bins, of_event, counts) for of_event in (best, hit.astype(np.float64)))
    gaps = np.where(counts > 0, np.abs(confidence - accuracy), 0.0)
    temperature = best_temperature(values, picks)
    tempered = log_softmax(values / temperature)
    return Calibration(
        confidence=confidence,
        accuracy=accuracy,
        counts=counts,
        expected_error=float(gaps @ counts / picks.size),
        log_likelihood=float(log_p[rows, picks].mean()),
        temperature=temperature,
        log_likelihood_at_temperature=float(tempered[rows, picks].mean()),
    )


def best_temperature(logits: Doubles, chosen: NDArray[np.int64]) -> float:
    """Temperature by which logits [n, m] have to be divided for the highest likelihood of the choices [n]."""
    rows = np.arange(chosen.size)

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature))[rows, chosen].mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def _mean_by(bins: NDArray[np.int64], values: Doubles, counts: NDArray[np.int64]) -> Doubles:
    sums = np.bincount(bins, values, minlength=counts.size)
    means = np.full(counts.size, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means
