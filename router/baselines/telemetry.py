"""Users as weights on features of the answers: a hierarchical mixed logit (telemetry track).

    s(u, q, m) = x(q, m) · w(u),    w(u) ~ N(μ, Σ),

x being the features of the answer and an indicator of the LLM. μ and Σ are found by expectation maximisation
with Laplace's approximation of each user's posterior (Train, "Discrete Choice Methods with Simulation", 2009,
chapters 11 and 12). Where no answer has been measured, ridge regressions predict its features from the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from router.baselines.common import require, without_unknown
from router.baselines.particles import particle_scores
from router.errors import ParameterError
from router.persona.data import ChoiceData, Choices, Floats, Ints, Support

Doubles = NDArray[np.float64]
_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_FOLDS = 5
_FOLD_IN_STEPS = 8


class TelemetryRouter:
    """Hierarchical mixed logit on response features.

    Parameters
    ----------
    n_rounds
        Rounds of expectation maximisation, each with one Newton step per user.
    new_users
        How new users are met: as a mixture of known ones, or by the mode of their own posterior under
        N(μ, Σ).
    """

    def __init__(
        self, *, n_rounds: int = 25, new_users: Literal["particles", "posterior"] = "particles"
    ) -> None:
        self.n_rounds = n_rounds
        self.new_users = new_users
        self._fitted: tuple[Floats, Floats] | None = None

    def fit(self, data: ChoiceData) -> None:
        """Find the users' weights and their distribution.

        Raises
        ------
        ParameterError
            The data is of the choice-only track.
        """
        if data.features is None:
            raise ParameterError("'features' must be given: this baseline is of the telemetry track")
        x = design(data)
        events = _Events.of(data.choices, data.n_users, x)
        n_features = x.shape[2]
        mean, covariance = np.zeros(n_features), np.eye(n_features)
        weights = np.zeros((data.n_users, n_features))
        for _ in range(self.n_rounds):
            weights, spread = events.newton_step(weights, mean, covariance)
            mean = weights.mean(axis=0)
            centred = weights - mean
            covariance = centred.T @ centred / data.n_users + spread.mean(axis=0)
        self._fitted = weights.astype(np.float32), x.astype(np.float32)
        self._law = mean, covariance
        self._data = data

    def scores(self, users: Ints, queries: Ints) -> Floats:
        """Logits of known users, float32 [u, q, m]."""
        require(self._fitted, self)
        assert self._fitted is not None
        return self._logits(self._fitted[0][users], queries)

    def scores_new_users(self, support: Support, queries: Ints) -> Floats:
        """Posterior mean over the known users, or logits at the mode of the users' own posterior."""
        require(self._fitted, self)
        assert self._fitted is not None
        if self.new_users == "particles":
            return particle_scores(self, self._data, support, queries)
        events = _Events.of(support.choices, support.n_users, self._fitted[1].astype(np.float64))
        weights = np.tile(self._law[0], (support.n_users, 1))
        for _ in range(_FOLD_IN_STEPS):
            weights, _ = events.newton_step(weights, *self._law)
        return self._logits(weights.astype(np.float32), queries)

    def _logits(self, weights: Floats, queries: Ints) -> Floats:
        assert self._fitted is not None
        pairs = self._fitted[1][queries]
        logits = weights @ pairs.reshape(-1, pairs.shape[2]).T
        return without_unknown(logits.reshape(len(weights), *pairs.shape[:2]), self._data)


def design(data: ChoiceData) -> Doubles:
    """Features of all answers, measured or predicted, with an indicator of the LLM, float64 [q, m, f + m]."""
    features = complete_features(data)
    llms = np.broadcast_to(np.eye(data.n_llms), (data.n_queries, data.n_llms, data.n_llms))
    return np.concatenate([features, llms], axis=2)


def complete_features(data: ChoiceData) -> Doubles:
    """Fill in the features of answers that were not measured, float64 [q, m, f].

    For each LLM a ridge regression on the query's task and embedding, its penalty chosen for each feature by
    cross-validation. An LLM without any measured answer gets zeros.
    """
    assert data.features is not None
    result = data.features.astype(np.float64)
    describing = np.concatenate([np.eye(data.n_tasks)[data.tasks], data.query_embeddings], axis=1)
    for llm in range(data.n_llms):
        known = ~np.isnan(result[:, llm]).any(axis=1)
        if not known.any():
            result[:, llm] = 0.0
        elif not known.all():
            result[~known, llm] = predict_by_ridge(describing[known], result[known, llm], describing[~known])
    return result


def predict_by_ridge(x: Doubles, y: Doubles, x_new: Doubles) -> Doubles:
    """Predict columns of y at new points, the penalty chosen for each column by cross-validation.

    Parameters
    ----------
    x, y, x_new
        float64 [n, p], [n, c], [n_new, p].

    Returns
    -------
    float64 [n_new, c]
    """
    folds = np.arange(len(x)) % _FOLDS
    errors = np.zeros((len(_PENALTIES), y.shape[1]))
    for fold in range(_FOLDS):
        out = folds == fold
        for error, guess in zip(errors, _ridge_path(x[~out], y[~out], x[out])):
            error += ((guess - y[out]) ** 2).sum(axis=0)
    guesses = np.stack(list(_ridge_path(x, y, x_new)))
    best: Doubles = np.take_along_axis(guesses, errors.argmin(axis=0)[None, None], axis=0)[0]
    return best


def _ridge_path(x: Doubles, y: Doubles, x_new: Doubles) -> list[Doubles]:
    """Predictions for each penalty, through the eigenvectors of the kernel matrix."""
    offset = y.mean(axis=0)
    values, vectors = np.linalg.eigh(x @ x.T)
    rotated, kernel = vectors.T @ (y - offset), x_new @ x.T @ vectors
    return [offset + kernel @ (rotated / (values.clip(0.0) + penalty)[:, None]) for penalty in _PENALTIES]


@dataclass(frozen=True, slots=True)
class _Events:
    """Choices of all users, padded to the longest history.

    ``x`` float32 [u, e, m, f], ``chosen`` float32 [u, e, m] with zeros in the padding, ``closed`` bool
    [u, e, m] (not on offer), ``real`` float32 [u, e].
    """

    x: Floats
    chosen: Floats
    closed: NDArray[np.bool_]
    real: Floats

    @classmethod
    def of(cls, choices: Choices, n_users: int, x: Doubles) -> _Events:
        order = np.argsort(choices.users, kind="stable")
        users = choices.users[order]
        place = np.arange(users.size) - np.searchsorted(users, users)
        shape = (n_users, int(place.max(initial=0)) + 1, x.shape[1])
        padded = np.zeros((*shape, x.shape[2]), dtype=np.float32)
        chosen, closed = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
        real = np.zeros(shape[:2], dtype=np.float32)
        padded[users, place] = x[choices.queries[order]]
        chosen[users, place, choices.llms[order]] = 1.0
        real[users, place] = 1.0
        if choices.offered is not None:
            closed[users, place] = ~choices.offered[order]
        return cls(padded, chosen, closed, real)

    def newton_step(self, weights: Doubles, mean: Doubles, covariance: Doubles) -> tuple[Doubles, Doubles]:
        """Newton step of each user towards the posterior's mode; also the posterior covariance there."""
        logits = (self.x @ weights.astype(np.float32)[:, None, :, None])[..., 0]
        logits[self.closed] = -np.inf
        logits -= logits.max(axis=2, keepdims=True)
        p = np.exp(logits)
        p *= self.real[..., None] / p.sum(axis=2, keepdims=True)
        n_users, n_features = weights.shape
        flat = self.x.reshape(n_users, -1, n_features)
        slope = ((self.chosen - p).reshape(n_users, 1, -1) @ flat)[:, 0]
        mean_x = (p[..., None, :] @ self.x)[..., 0, :]
        weighted = flat * p.reshape(n_users, -1, 1)
        information = flat.transpose(0, 2, 1) @ weighted - mean_x.transpose(0, 2, 1) @ mean_x
        precision = np.linalg.inv(covariance)
        spread = np.linalg.inv(information.astype(np.float64) + precision)
        uphill = slope.astype(np.float64) - (weights - mean) @ precision
        return weights + (spread @ uphill[..., None])[..., 0], spread
