"""Slots: the nodes that one source has reached, as compact records that stay in the cache.

A node's slot is found through an open-addressing table; its record, of 32 bytes, holds all that the walk
needs to know of it. :class:`Scratch` is the working memory of one thread around them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Fields of a slot's record: mass that has arrived, estimate, row begin << 24 | degree, node.
INCOMING, ESTIMATE, ROW, NODE, N_FIELDS = 0, 1, 2, 3, 4
_DEGREE_BITS = 24
_DEGREE_MASK = (1 << _DEGREE_BITS) - 1  # this degree or more: read it from the graph
_CACHE_LINE_WORDS = 8

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
_FIRST_TABLE_BITS = 10
_1 = np.uint64(1)
_2 = np.uint64(2)

_kernel: Any = njit(cache=True, error_model="numpy", nogil=True)
_inline: Any = njit(cache=True, inline="always")


class Scratch(NamedTuple):
    """Working memory of one thread; pages that are not touched cost nothing.

    ``table`` maps a node to its slot plus one, 0 where free, and the slot's record says whether it is the
    node's; only a prefix, a power of two, is in use. ``active`` are the slots with mass at this step; of
    these, ``pushing`` and ``splitting`` hand on ``pushed`` and ``split_mass``. The step's edges get the mass
    ``hand``: they are ``edge`` where unweighted, else the place of the cumulative weight ``offset`` in the
    row that begins at ``edge`` and is ``span`` long.
    """

    table: NDArray[np.uint32]
    record: NDArray[np.int64]
    active: NDArray[np.uint32]
    pushing: NDArray[np.uint32]
    pushed: NDArray[np.int64]
    splitting: NDArray[np.uint32]
    split_mass: NDArray[np.int64]
    edge: NDArray[np.uint64]
    span: NDArray[np.int64]
    offset: NDArray[np.int64]
    hand: NDArray[np.int64]
    target: NDArray[np.int32]


def new_scratch(n_slots: int, n_edges: int) -> Scratch:
    """Scratch for sources that reach ``n_slots`` nodes, and hand mass to ``n_edges`` edges in a step."""
    table_size = 1 << max(_FIRST_TABLE_BITS, (4 * n_slots - 1).bit_length())
    # an entry to spare: the kernels write the next one before they know whether to keep it
    n_slots, n_edges = n_slots + 1, n_edges + 1
    words = np.zeros(n_slots * N_FIELDS + _CACHE_LINE_WORDS, np.int64)
    skip = (-words.ctypes.data // words.itemsize) % _CACHE_LINE_WORDS  # no record across two cache lines
    return Scratch(
        table=np.zeros(table_size, np.uint32),
        record=words[skip : skip + n_slots * N_FIELDS],
        active=np.empty(n_slots, np.uint32),
        pushing=np.empty(n_slots, np.uint32),
        pushed=np.empty(n_slots, np.int64),
        splitting=np.empty(n_slots, np.uint32),
        split_mass=np.empty(n_slots, np.int64),
        edge=np.empty(n_edges, np.uint64),
        span=np.empty(n_edges, np.int64),
        offset=np.empty(n_edges, np.int64),
        hand=np.empty(n_edges, np.int64),
        target=np.empty(n_edges, np.int32),
    )


@_inline
def hash_node(node, bits):
    """Where in a table of 2**bits to look first."""
    return (np.uint64(node) * _MULTIPLIER) >> np.uint64(64 - bits)


@_inline
def field(slot, name):
    """Index of a slot's field in ``record`` (unsigned: numba then skips its test for negative indices)."""
    return (np.uint64(slot) << _2) | np.uint64(name)


@_kernel
def find_slot(s, node, bits):
    """Slot of ``node``, or -1 where the source has not reached it."""
    at = hash_node(node, bits)
    while s.table[at] != 0:
        slot = np.int64(s.table[at]) - 1
        if s.record[field(slot, NODE)] == node:
            return slot
        at = (at + _1) & np.uint64((1 << bits) - 1)
    return np.int64(-1)


@_kernel
def refill_table(s, n_slots, bits):
    """Put all slots into a table of 2**bits."""
    table, record = s.table, s.record
    table[: 1 << bits] = 0
    for slot in range(n_slots):
        node = record[field(slot, NODE)]
        at = hash_node(node, bits)
        while table[at] != 0:
            at = (at + _1) & np.uint64((1 << bits) - 1)
        table[at] = np.uint32(slot + 1)


@_inline
def packed_row(indptr, node):
    """Field ROW of a node's record: where its row begins, and its degree."""
    begin = indptr[node]
    degree = indptr[node + 1] - begin
    return (begin << _DEGREE_BITS) | min(degree, _DEGREE_MASK)


@_inline
def row_of(indptr, node, row):
    """(begin, degree) of a node's row, from the field ROW of its record."""
    begin = row >> _DEGREE_BITS
    degree = row & _DEGREE_MASK
    if degree == _DEGREE_MASK:
        degree = indptr[node + 1] - begin
    return begin, degree


@_kernel
def clear(s, n_slots, bits):
    """Forget a source; returns the size of the table to start the next one with, which will be like it."""
    s.table[: 1 << bits] = 0
    s.record[: N_FIELDS * (n_slots + 1)] = 0
    bits = np.int64(_FIRST_TABLE_BITS)
    while 1 << bits < 4 * n_slots and 1 << bits < s.table.size:
        bits += 1
    return bits
