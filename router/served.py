"""Factors of queries in the form that a service can use: of the query's task, and of its predicted answers.

:class:`~router.model.TasteModel` gives [v, b] of a query that was not there in training by its task and, in
the telemetry track, by the features of its answers, which :mod:`router.answers` predicts from kernels φ(e) of
the embedding, linearly:

    [v, b](q, m) = base(t, m) + (φ(e(q)) - φ(t)) · L(m) · C(t),

φ(t) being the mean over the task's queries, L what a landmark tells of the features, and C what a feature
adds. A query that was asked often enough in training keeps the [v, b] that were learned for it, its own
weights and measured answers included. Only differences between LLMs count in a choice, so base, L and
these are centred over LLMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.answers import AnswerModel, fit_answers
from router.model import TasteModel
from router.persona.data import Bools, ChoiceData, Floats, Ints

# Half as many as in training: twice as fast, and hardly worse.
N_LANDMARKS = 256
# A single choice moves a query's own weights hardly from their prior, and most queries are asked but once.
MIN_CHOICES = 2


@dataclass(frozen=True, slots=True)
class LightPairs:
    """Factors by task and, in the telemetry track, by predicted answers.

    Attributes
    ----------
    base
        For the mean query of each task, and last the mean over all choices, float32 [t + 1, m, d + 1].
    answers
        Predicts features of answers; None in the choice-only track, as the following.
    kernels
        Mean kernels of each task's queries, float32 [t, l].
    by_feature
        What features add, float32 [t, f, d + 1].
    """

    base: Floats
    answers: AnswerModel | None = None
    kernels: Floats | None = None
    by_feature: Floats | None = None

    @classmethod
    def of(cls, model: TasteModel, data: ChoiceData) -> LightPairs:
        """Take what a service needs from a model that was trained on ``data``."""
        known = data.known_llms()
        base: Floats = model.by_task.numpy()
        answers, kernels, by_feature = None, None, None
        if model.by_feature is not None:
            answers, by_feature = fit_answers(data, n_landmarks=N_LANDMARKS), model.by_feature.numpy()
            kernels = _means(answers.kernels(data.query_embeddings), data.tasks, data.n_tasks)
            features = answers.by_task + np.tensordot(kernels, answers.by_landmark, axes=1)
            base = (base + features @ by_feature).astype(np.float32)
            answers = replace(answers, by_landmark=_centred(answers.by_landmark, known))
        base = _centred(base, known)
        shares = np.bincount(data.tasks[data.choices.queries], minlength=data.n_tasks) / len(data.choices)
        mean = np.tensordot(shares, base, axes=1)[None]
        return cls(np.concatenate([base, mean]).astype(np.float32), answers, kernels, by_feature)

    def at(self, tasks: Ints, embeddings: Floats) -> Floats:
        """Factors and bias of queries, float32 [n, m, d + 1]."""
        pairs = self.base[tasks]
        if self.answers is None or self.kernels is None or self.by_feature is None:
            return pairs
        apart = self.answers.kernels(embeddings) - self.kernels[tasks]
        features = np.tensordot(apart, self.answers.by_landmark, axes=1)
        return (pairs + features @ self.by_feature[tasks]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class KnownQueries:
    """Queries with factors of their own, known by their keys.

    Attributes
    ----------
    positions
        Among the queries of the training, ascending, int64 [k].
    pairs
        Factors and bias, float32 [k, m, d + 1].
    row_of
        Row of each query of the training, int64 [q]; -1: its factors are those of its task.
    """

    positions: Ints
    pairs: Floats
    row_of: Ints

    @classmethod
    def of(cls, model: TasteModel, data: ChoiceData, keys: Sequence[Any] | NDArray[Any]) -> KnownQueries:
        """Take the queries of at least ``MIN_CHOICES`` choices from a model that was trained on ``data``.

        Parameters
        ----------
        model, data
            The model and what it was trained on.
        keys
            Key of each query. Queries of different tasks may share one: then it stands for the query with
            most choices.
        """
        n_choices = np.bincount(data.choices.queries, minlength=data.n_queries)
        often = np.flatnonzero(n_choices >= MIN_CHOICES)
        by_key: dict[Any, int] = {}
        for query in often[np.argsort(-n_choices[often], kind="stable")].tolist():
            by_key.setdefault(keys[query], query)
        positions = np.sort(np.fromiter(by_key.values(), np.int64, len(by_key)))
        of_key = np.array([by_key.get(key, -1) for key in keys], dtype=np.int64)
        known = (of_key >= 0) & (data.tasks[of_key] == data.tasks)
        row_of = np.where(known, np.searchsorted(positions, of_key), -1)
        return cls(positions, _centred(model.pairs.numpy()[positions], data.known_llms()), row_of)

    def put(self, pairs: Floats, queries: Ints) -> None:
        """Set the factors of known queries in ``pairs`` [n, m, d + 1] of queries, int64 [n]."""
        rows = self.row_of[queries]
        pairs[rows >= 0] = self.pairs[rows[rows >= 0]]


def _means(values: Floats, groups: Ints, n_groups: int) -> Floats:
    """Mean rows by group, float32 [g, ...]."""
    sums = np.zeros((n_groups, values.shape[1]))
    np.add.at(sums, groups, values)
    return (sums / np.bincount(groups, minlength=n_groups)[:, None]).astype(np.float32)


def _centred(values: Floats, known: Bools) -> Floats:
    """Values [..., m, f] less their mean over the known LLMs; zeros for the others."""
    of_known = np.where(known[:, None], values, np.float32(0.0))
    centred = of_known - of_known.sum(axis=-2, keepdims=True) / max(known.sum(), 1)
    return np.where(known[:, None], centred, np.float32(0.0)).astype(np.float32)
