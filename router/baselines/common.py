"""What the baselines share."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from router.errors import NotFittedError
from router.persona.data import ChoiceData, ChoiceRouter, Choices, Floats, Ints


def require(fitted: object, model: object) -> None:
    """Check that a model has been fitted.

    Raises
    ------
    NotFittedError
        ``fitted`` is None.
    """
    if fitted is None:
        raise NotFittedError(f"'{type(model).__name__}' must be fitted before it scores")


def log_softmax(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Log-probabilities over the last axis; -inf stays -inf."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    result: NDArray[np.floating] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def incidence(ids: Ints, n: int) -> sp.csr_array:
    """Matrix [n, len(ids)] that sums rows by id."""
    rows = np.arange(ids.size)
    return sp.csr_array((np.ones(ids.size, dtype=np.float32), (ids, rows)), shape=(n, ids.size))


def without_unknown(scores: Floats, data: ChoiceData) -> Floats:
    """Exclude LLMs of which nothing has been observed, in place."""
    scores[..., ~data.known_llms()] = -np.inf
    return scores


def log_likelihood(model: ChoiceRouter, choices: Choices) -> float:
    """Mean log-likelihood of known users' choices, scores being logits; to choose parameters by."""
    users, place = np.unique(choices.users, return_inverse=True)
    queries, column = np.unique(choices.queries, return_inverse=True)
    scores = model.scores(users, queries)[place, column]
    if choices.offered is not None:
        scores = np.where(choices.offered, scores, -np.inf)
    return float(log_softmax(scores)[np.arange(len(choices)), choices.llms].mean())
