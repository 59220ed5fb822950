"""Kernels of a refresh: how far rows of transition probabilities moved, and sums over steps of walks.

Both round up: a sum of d terms and a few factors is off by at most (d + 8) * 2**-53 of its value, and what is
returned has been raised by twice that. So bounds hold in floating point too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

ROUNDING = 2.0**-52
_SPARE = 8
_0 = np.uint64(0)

_kernel: Any = njit(cache=True, nogil=True)
_inline: Any = njit(cache=True, inline="always")


@_inline
def _weight(cumulative, begin, edge):
    """Quantised weight of an edge of the row that begins at ``begin``."""
    if cumulative.size == 0:
        return np.uint64(1)
    below = _0 if edge == begin else np.uint64(cumulative[edge - 1])
    return np.uint64(cumulative[edge]) - below


@_inline
def _total(cumulative, begin, end):
    """Sum of the quantised weights of a row that is not empty."""
    return np.uint64(end - begin) if cumulative.size == 0 else np.uint64(cumulative[end - 1])


@_inline
def _difference(old, new, begin, end, start, stop):
    """L1 distance of two rows that are not empty, and whether they name other nodes.

    Products of quantised weights are exact in 64 bits, so equal probabilities give exactly 0.
    """
    _, ids, cumulative = old
    _, new_ids, new_cumulative = new
    total, new_total = _total(cumulative, begin, end), _total(new_cumulative, start, stop)
    moved, named = 0.0, False
    i, j = begin, start
    while i < end or j < stop:
        share, new_share = _0, _0
        at_old = i < end and (j == stop or ids[i] <= new_ids[j])
        at_new = j < stop and (i == end or new_ids[j] <= ids[i])
        if at_old:
            share = _weight(cumulative, begin, i) * new_total
            i += 1
        if at_new:
            new_share = _weight(new_cumulative, start, j) * total
            j += 1
        named |= at_old != at_new
        moved += np.float64(share - new_share if share > new_share else new_share - share)
    moved /= np.float64(total) * np.float64(new_total)
    return moved * (1.0 + (end - begin + stop - start + _SPARE) * ROUNDING), named


@_kernel
def row_changes(old, new, first, moved, named):
    """How far the rows of two graphs are apart, from node ``first`` on.

    Parameters
    ----------
    old, new
        (indptr int64 [n + 1], indices int32 [m], cumulative uint32 [m], or [0] when unweighted); ids of
        ``old`` mean the same in ``new``.
    first
        First node.
    moved
        float64 [b], filled with the L1 distance of the transition probabilities, rounded up; 0 only where
        they are equal.
    named
        bool [b], filled with whether the rows name other nodes.
    """
    for i in range(moved.size):
        begin, end = old[0][first + i], old[0][first + i + 1]
        start, stop = new[0][first + i], new[0][first + i + 1]
        if begin == end or start == stop:
            named[i] = (begin == end) != (start == stop)
            moved[i] = 1.0 if named[i] else 0.0
        else:
            moved[i], named[i] = _difference(old, new, begin, end, start, stop)


@_kernel
def step_back(graph, weight, before, first, after, total):
    """One step of all walks, seen from where they start: ``after = P before``, ``total += weight * after``.

    Parameters
    ----------
    graph
        As in :func:`row_changes`.
    weight
        Weight of the step.
    before
        Value of each node, not negative, float64 [n].
    first
        First node.
    after
        float64 [b], filled with the mean of ``before`` over the moves from each node, rounded up.
    total
        float64 [b], added to.

    Returns
    -------
    (largest, reached)
        The largest entry of ``after``, and how many entries of ``total`` became positive.
    """
    indptr, indices, cumulative = graph
    largest, reached = 0.0, np.int64(0)
    for i in range(after.size):
        begin, end = indptr[first + i], indptr[first + i + 1]
        value = 0.0
        if cumulative.size == 0:
            for edge in range(begin, end):
                value += before[indices[edge]]
        else:
            below = np.uint32(0)
            for edge in range(begin, end):
                value += np.float64(cumulative[edge] - below) * before[indices[edge]]
                below = cumulative[edge]
        if value > 0.0:
            value /= np.float64(_total(cumulative, begin, end))
            value *= 1.0 + (end - begin + _SPARE) * ROUNDING
            reached += total[i] == 0.0
            total[i] += weight * value
            largest = max(largest, value)
        after[i] = value
    return largest, reached
