"""Rows out of slots: the best entries, sorted by score descending, ties by ascending node id."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ppr.kernels.packets import ONE, walk
from ppr.kernels.slots import ESTIMATE, NODE, clear, field, find_slot

_kernel: Any = njit(cache=True, error_model="numpy", nogil=True)
_NODE_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_SCORE = np.float64(1.0 / ONE)
# Buckets of the histogram of scores: exponent and four bits of the mantissa of a float32 from 2**-40 to 2.
# The first also takes zeros, the last all higher scores: few walks may leave more mass than 1 on a node.
_BUCKET_SHIFT = np.uint32(19)
_LEAST_BUCKET = (127 - 40) << 4
_N_BUCKETS = (41 << 4) + 1


def new_rank_space(capacity: int) -> tuple[NDArray[np.uint64], NDArray[np.float32], NDArray[np.int64]]:
    """Space to rank up to ``capacity`` slots."""
    return np.empty(capacity + 1, np.uint64), np.empty(capacity, np.float32), np.empty(_N_BUCKETS, np.int64)


@_kernel
def _exclude_neighbors(s, graph, source, bits):
    """Drop the source and its out-neighbours from the estimates."""
    indptr, indices, _ = graph
    s.record[field(0, ESTIMATE)] = 0
    for e in range(indptr[source], indptr[source + 1]):
        slot = find_slot(s, np.int64(indices[e]), bits)
        if slot >= 0:
            s.record[field(slot, ESTIMATE)] = 0


@_kernel
def largest_first(keys, limit):
    """Move the ``limit`` largest of distinct keys to the front (Hoare's quickselect)."""
    low, high = np.int64(0), np.int64(keys.size - 1)
    while low < high:
        pivot = keys[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while keys[left] > pivot:
                left += 1
            while keys[right] < pivot:
                right -= 1
            if left <= right:
                keys[left], keys[right] = keys[right], keys[left]
                left += 1
                right -= 1
        if limit <= right:
            high = right
        elif limit > left:
            low = left
        else:
            break


@_kernel
def rank_slots(s, n_slots, limit, allowed, kind_ids, space):
    """Sort keys of the best ``limit`` slots (all of them where negative), descending.

    A key is the float32 score's bits (which order like the score, as it is positive) over the complement of
    the node id, so that descending keys are descending scores with ties by ascending id. A histogram of the
    scores first sets aside the many small ones.
    """
    keys, scores, histogram = space
    record = s.record
    for slot in range(n_slots):
        scores[slot] = np.float32(record[field(slot, ESTIMATE)] * _SCORE)
    bits = scores.view(np.uint32)
    if allowed.size > 0:
        for slot in range(n_slots):
            if not allowed[kind_ids[record[field(slot, NODE)]]]:
                bits[slot] = 0
    least = np.uint32(1)
    if 0 <= limit < n_slots:
        histogram[:] = 0
        for slot in range(n_slots):
            above_least = np.int64(bits[slot] >> _BUCKET_SHIFT) - _LEAST_BUCKET
            histogram[min(max(above_least, 0), _N_BUCKETS - 1)] += 1
        wanted = np.int64(0)
        for bucket in range(_N_BUCKETS - 1, 0, -1):
            wanted += histogram[bucket]
            if wanted >= limit:
                least = np.uint32(bucket + _LEAST_BUCKET) << _BUCKET_SHIFT
                break
    count = np.int64(0)
    for slot in range(n_slots):
        node = np.uint64(record[field(slot, NODE)])
        keys[count] = (np.uint64(bits[slot]) << _32) | (_NODE_MASK - node)
        count += bits[slot] >= least
    best = keys[:count]
    if 0 <= limit < count:
        largest_first(best, limit)
        best = best[:limit]
    return np.sort(best)[::-1]


@_kernel
def walk_rows(graph, kind_ids, sources, first, params, row, s, space, out):
    """Walk the sources from position ``first`` on and write their rows until the space is used up.

    Parameters
    ----------
    graph, params, s
        As in :func:`ppr.kernels.packets.walk`.
    kind_ids
        uint8 [n].
    sources
        int32 [b].
    row
        (limit: entries kept or -1, allowed: bool [kinds] or [0] for all, exclude_neighbors).
    space
        From :func:`new_rank_space`, for the capacity of the scratch.
    out
        (lengths int64 [b], mass int64 [b], moves int64 [b], ids int32 [space], scores float32 [space]).

    Returns
    -------
    (next, used, full)
        Position of the first source not done, entries written, and whether it was the scratch that was too
        small (it is then to be thrown away), else the output space.
    """
    limit, allowed, exclude_neighbors = row
    lengths, masses, moves, out_ids, out_scores = out
    used = np.int64(0)
    bits = clear(s, np.int64(0), np.int64(1))
    for position in range(first, sources.size):
        source = np.int64(sources[position])
        n_slots, n_moves, bits = walk(graph, source, params, s, bits)
        if n_slots < 0:
            return position, used, True
        mass = np.int64(0)
        for slot in range(n_slots):
            mass += s.record[field(slot, ESTIMATE)]
        if exclude_neighbors:
            _exclude_neighbors(s, graph, source, bits)
        best = rank_slots(s, n_slots, limit, allowed, kind_ids, space)
        bits = clear(s, n_slots, bits)
        if used + best.size > out_ids.size:
            return position, used, False
        values = (best >> _32).astype(np.uint32).view(np.float32)
        for i in range(best.size):
            out_ids[used + i] = np.int32(_NODE_MASK - (best[i] & _NODE_MASK))
            out_scores[used + i] = values[i]
        used += best.size
        lengths[position] = best.size
        masses[position] = mass
        moves[position] = n_moves
    return np.int64(sources.size), used, False
