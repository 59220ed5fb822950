"""Choosing the parameters of item ranking on a validation split of the training interactions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ppr.metrics import HeldOut, ndcg_at_k, recall_at_k
from router.errors import DataError, ParameterError
from router.items.ranker import Recommendations

Setting = TypeVar("Setting")


def split_interactions(
    interactions: sp.csr_array, *, fraction: float = 0.2, seed: int = 0
) -> tuple[sp.csr_array, sp.csr_array]:
    """Hold out a share of each user's interactions, drawn at random and rounded down.

    Parameters
    ----------
    interactions
        Users × items.
    fraction
        Share held out, in (0, 1).
    seed
        Of the draw.

    Returns
    -------
    train, held_out
        Of the same shape.

    Raises
    ------
    ParameterError
        ``fraction`` is outside (0, 1).
    DataError
        No user has interactions enough to give one away.
    """
    if not 0.0 < fraction < 1.0:
        raise ParameterError(f"'fraction' must be between 0 and 1, exclusive (got {fraction})")
    matrix = sp.csr_array(interactions)
    counts = np.diff(matrix.indptr)
    users = np.repeat(np.arange(matrix.shape[0]), counts)
    order = np.lexsort((np.random.default_rng(seed).random(users.size), users))
    rank = np.arange(users.size) - np.repeat(matrix.indptr[:-1], counts)
    held_out = np.empty(users.size, dtype=bool)
    held_out[order] = rank < np.repeat(np.floor(fraction * counts), counts)
    if not held_out.any():
        raise DataError(f"no user has the {int(np.ceil(1 / fraction))} interactions that a split needs")
    return _entries(matrix, users, ~held_out), _entries(matrix, users, held_out)


def _entries(matrix: sp.csr_array, rows: NDArray[np.integer], which: NDArray[np.bool_]) -> sp.csr_array:
    return sp.csr_array((matrix.data[which], (rows[which], matrix.indices[which])), shape=matrix.shape)


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the users with held-out items."""

    recall: float
    ndcg: float

    @property
    def mean(self) -> float:
        """What parameters are chosen by."""
        return (self.recall + self.ndcg) / 2


def item_quality(
    recommend: Callable[[NDArray[np.int64], int], Recommendations],
    held_out: sp.csr_array,
    *,
    k: int = 20,
    users: NDArray[np.int64] | None = None,
) -> Quality:
    """Recall@k and NDCG@k in the all-ranking protocol.

    Parameters
    ----------
    recommend
        Gives ids and scores for users and k, such as :meth:`ItemRanker.recommend`.
    held_out
        What users went for, users × items.
    users
        Users to ask for, or None for all with held-out items.
    """
    asked = np.flatnonzero(np.diff(held_out.indptr)) if users is None else users
    wanted = held_out[asked]
    lists = HeldOut(wanted.indptr.astype(np.int64), wanted.indices)
    ids, _ = recommend(asked, k)
    recall, ndcg = (metric(ids, lists, k) for metric in (recall_at_k, ndcg_at_k))
    return Quality(float(np.nanmean(recall)), float(np.nanmean(ndcg)))


def search_coordinates(
    start: Setting,
    grid: Mapping[str, Sequence[float]],
    change: Callable[[Setting, str, float], Setting],
    value: Callable[[Setting], float],
) -> tuple[Setting, float]:
    """Try the values of one parameter after the other, keeping what is better: one pass.

    Parameters
    ----------
    start
        Setting to begin with.
    grid
        Values to try, by parameter, in the order of trying.
    change
        Gives a setting with one parameter changed.
    value
        Gives the quality of a setting; the first of equals is kept.

    Returns
    -------
    best, value
    """
    best, best_value = start, value(start)
    for name, candidates in grid.items():
        for candidate in candidates:
            setting = change(best, name, candidate)
            if setting == best:
                continue
            reached = value(setting)
            if reached > best_value:
                best, best_value = setting, reached
    return best, best_value
