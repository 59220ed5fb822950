"""Features of answers that nobody has measured, predicted from the query (telemetry track).

For each LLM and feature a Gaussian process over queries (Rasmussen, Williams, "Gaussian Processes for Machine
Learning", 2006, sections 2.2 and 5.3),

    x(q, m) = offset + task of q + f_m(e(q)),    cov f = exp((cos(e, e') - 1) / width),

e being the query's embedding less the mean. The noise is chosen by leave-one-out errors, which have a closed
form. Kernels are taken at a limited number of queries, the landmarks (Nyström), so that a prediction costs
the same however many queries have been measured.

An LLM with few measured answers, such as a new one, is likely to answer as others do: what is predicted of
the others' answers to the same query becomes a further descriptor, with a weight for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.persona.data import Bools, ChoiceData, Floats, Ints

Doubles = NDArray[np.float64]

_WIDTH = 0.2
_OFFSET_VARIANCE = 10.0  # against 1 of tasks and of f
_OTHERS_VARIANCE = 0.3
_NOISES = np.geomspace(0.01, 300.0, 16)
_FEW = 200
_SMALLEST = 1e-8


@dataclass(frozen=True, slots=True)
class AnswerModel:
    """Predicts features of answers; affine in the kernels to the landmarks, within a task.

    Attributes
    ----------
    centre
        Mean embedding, float32 [e].
    landmarks
        Embeddings of some queries, less the mean, of length 1, float32 [l, e].
    by_task
        float32 [t, m, f].
    by_landmark
        float32 [l, m, f].
    """

    centre: Floats
    landmarks: Floats
    by_task: Floats
    by_landmark: Floats

    def kernels(self, embeddings: Floats) -> Floats:
        """Covariances of queries with the landmarks, float32 [q, l]."""
        return _kernels(_directions(embeddings, self.centre), self.landmarks)

    def predict(self, tasks: Ints, embeddings: Floats) -> Floats:
        """Features of all LLMs' answers to queries, float32 [q, m, f]."""
        result: Floats = self.by_task[tasks] + np.tensordot(
            self.kernels(embeddings), self.by_landmark, axes=1
        )
        return result

    def complete(self, data: ChoiceData) -> Floats:
        """Fill in what was not measured, float32 [q, m, f]."""
        assert data.features is not None
        predicted = self.predict(data.tasks, data.query_embeddings)
        return np.where(np.isnan(data.features), predicted, data.features)


def fit_answers(data: ChoiceData, *, n_landmarks: int = 512, seed: int = 0) -> AnswerModel:
    """Learn to predict answers from those that were measured.

    A feature that was never measured for an LLM is predicted by its mean over the other LLMs' answers, and by
    0 where there are none.

    Parameters
    ----------
    data
        Of the telemetry track.
    n_landmarks
        Queries to take kernels at; all measured ones where they are no more.
    seed
        Of the choice of landmarks.
    """
    assert data.features is not None
    measured = np.flatnonzero(~np.isnan(data.features).all(axis=(1, 2)))
    centre = data.query_embeddings.mean(axis=0)
    directions = _directions(data.query_embeddings, centre)
    chosen = np.random.default_rng(seed).permutation(measured)[:n_landmarks]
    landmarks = directions[np.sort(chosen)]
    to_landmarks = _whitening(_kernels(landmarks, landmarks).astype(np.float64))
    x = np.concatenate(
        [
            np.full((data.n_queries, 1), _OFFSET_VARIANCE**0.5),
            np.eye(data.n_tasks)[data.tasks],
            _kernels(directions, landmarks) @ to_landmarks,
        ],
        axis=1,
    )
    weights = _fit(x, data.features.astype(np.float64))
    by_task = x[0, 0] * weights[0] + weights[1 : data.n_tasks + 1]
    by_landmark = np.tensordot(to_landmarks, weights[data.n_tasks + 1 :], axes=1)
    return AnswerModel(centre, landmarks, by_task.astype(np.float32), by_landmark.astype(np.float32))


def _fit(x: Doubles, y: Doubles) -> Doubles:
    """Weights of descriptors x [q, p] for features y [q, m, f], of which NaN are unknown: [p, m, f]."""
    n_queries, n_llms, n_features = y.shape
    columns = y.reshape(n_queries, -1)
    known = ~np.isnan(columns)
    means = np.where(known.any(axis=0).reshape(n_llms, n_features), 0.0, _means(y))
    weights = np.zeros((x.shape[1], columns.shape[1]))
    weights[0] = means.ravel() / x[0, 0]
    without = np.zeros_like(columns)  # what is predicted of each answer without having seen it
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    for i, rows in enumerate(patterns.T):
        which = np.flatnonzero(pattern_of.ravel() == i)
        if rows.any():
            weights[:, which], without[np.ix_(rows, which)] = _ridge(x[rows], columns[np.ix_(rows, which)])
        without[np.ix_(~rows, which)] = x[~rows] @ weights[:, which]
    n_known = known.sum(axis=0).reshape(n_llms, n_features)
    shape = (-1, n_llms, n_features)
    result = weights.reshape(shape)
    for llm, feature in np.argwhere((n_known > 0) & (n_known < np.minimum(_FEW, n_known.max(axis=0) / 2))):
        better = np.flatnonzero(n_known[:, feature] > n_known[llm, feature])
        result[:, llm, feature] = _like_others(
            x,
            y[:, llm, feature],
            without.reshape(shape)[:, better, feature],
            weights.reshape(shape)[:, better, feature],
        )
    return result


def _like_others(x: Doubles, y: Doubles, others: Doubles, of_others: Doubles) -> Doubles:
    """Weights [p] for y [q], of x and of ``others`` [q, n], which are x @ ``of_others`` [p, n] themselves."""
    scale = _OTHERS_VARIANCE**0.5 / max(float(others.std()), _SMALLEST)
    centre = others.mean(axis=0)
    rows = ~np.isnan(y)
    more = np.concatenate([x, scale * (others - centre)], axis=1)
    weights = _ridge(more[rows], y[rows, None])[0][:, 0]
    own, shared = weights[: x.shape[1]], scale * weights[x.shape[1] :]
    result: Doubles = own + of_others @ shared
    result[0] -= centre @ shared / x[0, 0]
    return result


def _ridge(x: Doubles, y: Doubles) -> tuple[Doubles, Doubles]:
    """Weights [p, c] for y [n, c], and predictions of each row from all others, [n, c]."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    rotated = u.T @ y
    without, errors = [], []
    for noise in _NOISES:
        kept = s**2 / (s**2 + noise)
        residuals = (y - u @ (kept[:, None] * rotated)) / (1.0 - u**2 @ kept)[:, None]
        without.append(y - residuals)
        errors.append((residuals**2).sum(axis=0))
    best = np.argmin(errors, axis=0)
    weights = vt.T @ (s[:, None] / (s[:, None] ** 2 + _NOISES[best]) * rotated)
    return weights, np.take_along_axis(np.stack(without), best[None, None], axis=0)[0]


def _means(y: Doubles) -> Doubles:
    """Mean of each feature over all measured answers, 0 without any, [m, f]."""
    known: Bools = ~np.isnan(y)
    total, n = np.where(known, y, 0.0).sum(axis=(0, 1)), known.sum(axis=(0, 1))
    return np.broadcast_to(total / np.maximum(n, 1), y.shape[1:])


def _directions(embeddings: Floats, centre: Floats) -> Floats:
    apart = embeddings - centre
    result: Floats = apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), np.float32(_SMALLEST))
    return result


def _kernels(a: Floats, b: Floats) -> Floats:
    result: Floats = np.exp((a @ b.T - np.float32(1.0)) / np.float32(_WIDTH))
    return result


def _whitening(kernel: Doubles) -> Doubles:
    """A square root of the inverse, [l, r], leaving out directions without variance."""
    values, vectors = np.linalg.eigh(kernel)
    kept = values > _SMALLEST * values.max(initial=1.0)
    result: Doubles = vectors[:, kept] / np.sqrt(values[kept])
    return result
