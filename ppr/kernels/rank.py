"""Kernel that ranks the entries of one answer: best first, ties by ascending id, with filters."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def rank(
    ids: NDArray[np.int32],
    scores: NDArray[np.float64],
    divisors: NDArray[np.float64],
    allowed: NDArray[np.bool_],
    excluded: NDArray[np.int32],
    out_ids: NDArray[np.int32],
    out_scores: NDArray[np.float64],
) -> int:
    """Fill ``out_ids`` and ``out_scores`` with the best entries; the rest of both is left as it is.

    Parameters
    ----------
    ids, scores
        Entries, each id once.
    divisors
        Divides the score of each node, float64 [n], or empty for none.
    allowed
        Which nodes may be ranked, bool [n], or empty for all.
    excluded
        Nodes that may not, ascending.
    out_ids, out_scores
        [k].

    Returns
    -------
    int
        Number of entries ranked.
    """
    k = out_ids.size
    n_ranked = 0
    for i in range(ids.size):
        node = ids[i]
        if allowed.size and not allowed[node]:
            continue
        score = np.float64(scores[i])
        if divisors.size:
            score /= divisors[node]
        if n_ranked == k and not _before(score, node, out_scores[k - 1], out_ids[k - 1]):
            continue
        place = np.searchsorted(excluded, node)
        if place < excluded.size and excluded[place] == node:
            continue
        if n_ranked < k:
            n_ranked += 1
        place = n_ranked - 1
        while place > 0 and _before(score, node, out_scores[place - 1], out_ids[place - 1]):
            out_scores[place] = out_scores[place - 1]
            out_ids[place] = out_ids[place - 1]
            place -= 1
        out_scores[place] = score
        out_ids[place] = node
    return n_ranked


@njit(cache=True, nogil=True)
def _before(score: float, node: int, other_score: float, other_node: int) -> bool:
    return score > other_score or (score == other_score and node < other_node)
