"""Loops over sparse rows, compiled. They get checked arrays and fill arrays; they never raise."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def add_products(rows, x_indptr, x_indices, x_values, m_indptr, m_indices, m_values, out):
    """Add rows of the product of two compressed matrices to ``out``.

    Parameters
    ----------
    rows
        Rows of the left matrix, int64 [b].
    x_indptr, x_indices, x_values
        Left matrix [u, i].
    m_indptr, m_indices, m_values
        Right matrix [i, j].
    out
        float32 [b, j], added to.
    """
    for b in range(rows.size):
        for p in range(x_indptr[rows[b]], x_indptr[rows[b] + 1]):
            i, weight = x_indices[p], x_values[p]
            for q in range(m_indptr[i], m_indptr[i + 1]):
                out[b, m_indices[q]] += weight * m_values[q]


@njit(cache=True, nogil=True)
def neighbor_ridge(indptr, indices, values, closeness, penalties, out_ids, out_weights):
    """Regress each item on the items nearest to it.

    Parameters
    ----------
    indptr, indices, values
        Gram matrix of the items [i, i]: symmetric, rows ascending, float32.
    closeness
        Factor of each item; the neighbours of j are those of the largest ``values[j, i] * closeness[i]``,
        ties by ascending id; float32 [i].
    penalties
        Added to the diagonal, float64 [i].
    out_ids
        Neighbours of each item, int32 [i, n]; rows that have fewer are left as they are at their ends.
    out_weights
        Their coefficients, float32 [i, n].
    """
    n = out_ids.shape[1]
    place = np.full(indptr.size - 1, -1, np.int32)
    for j in range(indptr.size - 1):
        row = indices[indptr[j] : indptr[j + 1]]
        keys = -values[indptr[j] : indptr[j + 1]] * closeness[row]
        m = 0
        for at in np.argsort(keys, kind="mergesort"):
            if row[at] != j and m < n:
                out_ids[j, m] = row[at]
                place[row[at]] = m
                m += 1
        if m == 0:
            continue
        place[j] = m  # the right-hand side is one more column of the system
        system = np.zeros((m, m + 1))
        for r in range(m):
            i = out_ids[j, r]
            for p in range(indptr[i], indptr[i + 1]):
                if place[indices[p]] >= 0:
                    system[r, place[indices[p]]] = values[p]
            system[r, r] += penalties[i]
        left, right = np.ascontiguousarray(system[:, :m]), np.ascontiguousarray(system[:, m])
        solution = np.linalg.solve(left, right)
        for r in range(m):
            out_weights[j, r] = solution[r]
            place[out_ids[j, r]] = -1
        place[j] = -1


@njit(cache=True, nogil=True)
def rank_rows(scores, out_ids, out_scores):
    """Rank the entries of each row, best first, ties by ascending id; -inf is no candidate.

    Parameters
    ----------
    scores
        float32 [b, i].
    out_ids
        int32 [b, k], prepared with -1.
    out_scores
        float32 [b, k], prepared with 0.
    """
    k = out_ids.shape[1]
    for b in range(scores.shape[0]):
        found, least = 0, -np.inf
        for i in range(scores.shape[1]):
            score = scores[b, i]
            if score > least:
                at = min(found, k - 1)
                while at > 0 and out_scores[b, at - 1] < score:
                    out_scores[b, at] = out_scores[b, at - 1]
                    out_ids[b, at] = out_ids[b, at - 1]
                    at -= 1
                out_scores[b, at] = score
                out_ids[b, at] = i
                found = min(found + 1, k)
                if found == k:
                    least = out_scores[b, k - 1]
