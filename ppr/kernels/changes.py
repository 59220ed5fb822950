"""Kernels of changed graphs: find edges in compressed rows, and merge changes into them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ppr.kernels.edges import QUANTISED_TOTAL

_NO_NODE = np.int64(1) << 32  # above every id
_DST_MASK = (1 << 32) - 1


@njit(cache=True, nogil=True)
def find_edges(
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int32],
    keys: npt.NDArray[np.int64],
    found: npt.NDArray[np.bool_],
) -> None:
    """Look edges up in compressed rows, each by binary search in its source's row.

    Parameters
    ----------
    indptr, indices
        Rows of the graph: int64 [n + 1], int32 [m].
    keys
        int64 [edges], source << 32 | destination. A source may be beyond the rows.
    found
        bool [edges], filled with whether the edge is there.
    """
    for edge in range(len(keys)):
        src, dst = keys[edge] >> 32, keys[edge] & _DST_MASK
        low, end = np.int64(0), np.int64(0)
        if src < len(indptr) - 1:
            low, end = indptr[src], indptr[src + 1]
        high = end
        while low < high:
            middle = (low + high) // 2
            if indices[middle] < dst:
                low = middle + 1
            else:
                high = middle
        found[edge] = low < end and indices[low] == dst


@njit(cache=True, nogil=True)
def row_weights(
    indptr: npt.NDArray[np.int64],
    cumulative: npt.NDArray[np.uint32],
    strength: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
) -> None:
    """Recover weights from quantised ones.

    Exactly in rows of integers that were taken as they are, whose quantised weights add up to their strength;
    else each to 2^-31 of its row's strength.

    Parameters
    ----------
    indptr
        int64 [rows + 1], row bounds in ``cumulative``.
    cumulative
        uint32 [edges], inclusive sums of the quantised weights within each row.
    strength
        float64 [rows], sum of each row's weights.
    weights
        float64 [edges], filled.
    """
    for row in range(len(strength)):
        start, end = indptr[row], indptr[row + 1]
        if start == end:
            continue
        total = float(cumulative[end - 1])
        before = np.int64(0)
        for edge in range(start, end):
            quantised = float(np.int64(cumulative[edge]) - before)
            before = np.int64(cumulative[edge])
            weights[edge] = (
                quantised if total == strength[row] else quantised / QUANTISED_TOTAL * strength[row]
            )


@njit(cache=True, nogil=True)
def merge_changes(
    first: int,
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float64],
    gone: npt.NDArray[np.bool_],
    removed: npt.NDArray[np.int64],
    added: npt.NDArray[np.int64],
    added_weights: npt.NDArray[np.float64],
    new_indptr: npt.NDArray[np.int64],
    new_indices: npt.NDArray[np.int32],
    new_weights: npt.NDArray[np.float64],
) -> int:
    """Rows with some edges removed and others added.

    Parameters
    ----------
    first
        Node of the first row.
    indptr, indices, weights
        The rows, of nodes from ``first`` on: int64 [rows + 1], int32 [edges], float64 [edges].
    gone
        bool [n], nodes that lose all their edges.
    removed
        int64 [removed], source << 32 | destination, ascending, of these rows; each is there.
    added, added_weights
        int64 and float64 [added], the same; where an edge is there, the weights add up.
    new_indptr, new_indices, new_weights
        Filled with the new rows; room for all edges, old and added.

    Returns
    -------
    int
        Number of edges in the new rows.
    """
    n_new = removing = adding = 0
    new_indptr[0] = 0
    for row in range(len(indptr) - 1):
        src = np.int64(first + row)
        edge, end = indptr[row], indptr[row + 1]
        while True:
            there = np.int64(indices[edge]) if edge < end else _NO_NODE
            more = (
                added[adding] & _DST_MASK if adding < len(added) and added[adding] >> 32 == src else _NO_NODE
            )
            dst = min(there, more)
            if dst == _NO_NODE:
                break
            weight, keep = 0.0, True
            if there == dst:
                weight = weights[edge]
                keep = not (gone[src] or gone[dst])
                if removing < len(removed) and removed[removing] == src << 32 | dst:
                    removing += 1
                    keep = False
                edge += 1
            if more == dst:
                weight += added_weights[adding]
                adding += 1
            if keep:
                new_indices[n_new], new_weights[n_new] = dst, weight
                n_new += 1
        new_indptr[row + 1] = n_new
    return n_new
