"""Rows of partitioned walks: each part's best nodes of a source, and whole rows out of those.

As in :mod:`ppr.kernels.topk`, whose order they keep: score descending, ties by ascending node id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ppr.kernels.partitioned import DONE, FULL, MARK, MASS, MOVES, SMALL, table_bits
from ppr.kernels.slots import ESTIMATE, NODE, field, hash_node
from ppr.kernels.topk import largest_first, rank_slots

_1 = np.uint64(1)
_32 = np.uint64(32)
_NODE_MASK = np.uint64(0xFFFFFFFF)

_kernel: Any = njit(cache=True, error_model="numpy", nogil=True)
_inline: Any = njit(cache=True, inline="always")


@_kernel
def rank_part(records, start, sources, first_position, first_own, kind_ids, row, s, space, out):
    """Best nodes of a part for each source, from all that has stopped on them.

    Parameters
    ----------
    records
        (positions uint32, nodes int32, values int64), ascending by position: stopped masses, marks, moves.
    start
        First record of the first source to do.
    sources
        int32, of the positions from ``first_position`` on.
    first_own, kind_ids
        uint8, of the nodes from ``first_own`` on.
    row
        As in :func:`ppr.kernels.topk.walk_rows`.
    s, space
        Scratch of slots, and space to rank them.
    out
        (positions, nodes, values): of each source its MOVES, its MASS, and score bits of the best nodes.

    Returns
    -------
    (next, used, why)
        As :func:`ppr.kernels.partitioned.advance`.
    """
    positions, nodes, values = records
    limit, allowed, exclude_neighbors = row
    capacity = s.active.size - 1
    every = np.zeros(0, np.bool_)
    used = np.int64(0)
    while start < positions.size:
        position = positions[start]
        source = np.int64(sources[np.int64(position) - first_position])
        end = start + 1
        while end < positions.size and positions[end] == position:
            end += 1
        if end - start > capacity:
            return start, used, SMALL
        bits = table_bits(end - start)
        n_slots, moves, mass = _sum_stops(s, nodes, values, start, end, bits, exclude_neighbors)
        for slot in range(n_slots):
            node = s.record[field(slot, NODE)]
            if (allowed.size > 0 and not allowed[kind_ids[node - first_own]]) or (
                exclude_neighbors and node == source
            ):
                s.record[field(slot, ESTIMATE)] = 0
        best = rank_slots(s, n_slots, limit, every, kind_ids, space)
        if used + best.size + 2 > out[0].size:
            return start, used, FULL
        out[0][used : used + best.size + 2] = position
        out[1][used], out[2][used] = MOVES, moves
        out[1][used + 1], out[2][used + 1] = MASS, mass
        used += 2
        for key in best:
            out[1][used] = np.int32(_NODE_MASK - (key & _NODE_MASK))
            out[2][used] = np.int64(key >> _32)
            used += 1
        start = end
    return start, used, DONE


@_inline
def _sum_stops(s, nodes, values, first, last, bits, drop_marked):
    """Add up what has stopped on each node of one source; returns (n_slots, moves, mass)."""
    record, marked = s.record, s.hand
    wrap = np.uint64((1 << bits) - 1)
    s.table[: 1 << bits] = 0
    n_slots, moves, mass = np.int64(0), np.int64(0), np.int64(0)
    for i in range(first, last):
        node, value = np.int64(nodes[i]), values[i]
        if node == MOVES:
            moves += value
            continue
        at = hash_node(node, bits)
        entry = np.int64(s.table[at])
        while entry != 0 and record[field(entry - 1, NODE)] != node:
            at = (at + _1) & wrap
            entry = np.int64(s.table[at])
        if entry == 0:
            record[field(n_slots, NODE)] = node
            record[field(n_slots, ESTIMATE)] = 0
            marked[n_slots] = 0
            n_slots += 1
            entry = n_slots
            s.table[at] = np.uint32(entry)
        if value == MARK:
            marked[entry - 1] = 1
        else:
            record[field(entry - 1, ESTIMATE)] += value
            mass += value
    for slot in range(n_slots):
        if drop_marked and marked[slot]:
            record[field(slot, ESTIMATE)] = 0
    return n_slots, moves, mass


@_kernel
def merge_rows(records, first_position, limit, out):
    """Whole rows from the best nodes of all parts.

    Parameters
    ----------
    records
        What :func:`rank_part` gave in all parts, ascending by position.
    first_position
        Position of the first row.
    limit
        Entries kept, or -1.
    out
        (lengths int64 [b], mass int64 [b], moves int64 [b], ids int32 [records], scores float32 [records]).

    Returns
    -------
    int
        Entries written.
    """
    positions, nodes, values = records
    lengths, masses, moves, ids, scores = out
    keys = np.empty(positions.size, np.uint64)
    bits = scores.view(np.uint32)
    used, start = np.int64(0), np.int64(0)
    while start < positions.size:
        row = np.int64(positions[start]) - first_position
        count, i = np.int64(0), start
        while i < positions.size and positions[i] == positions[start]:
            if nodes[i] == MOVES:
                moves[row] += values[i]
            elif nodes[i] == MASS:
                masses[row] += values[i]
            else:
                keys[count] = (np.uint64(values[i]) << _32) | (_NODE_MASK - np.uint64(nodes[i]))
                count += 1
            i += 1
        best = keys[:count]
        if 0 <= limit < count:
            largest_first(best, limit)
            best = best[:limit]
        best = np.sort(best)[::-1]
        for j in range(best.size):
            ids[used + j] = np.int32(_NODE_MASK - (best[j] & _NODE_MASK))
            bits[used + j] = np.uint32(best[j] >> _32)
        lengths[row] = best.size
        used += best.size
        start = i
    return used
