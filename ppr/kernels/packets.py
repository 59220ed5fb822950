"""Walk packets: Monte Carlo personalised PageRank that moves mass instead of walkers.

The complete-path estimator (MCFP; Avrachenkov et al., SIAM J. Numer. Anal. 2007; PowerWalk, CIKM 2016) counts all
visits of R walks from a source. Here one level of all walks is advanced at once, as *mass on nodes*, in
fixed-point integers of 2**-40; the unit mu = 2**40 / R is the mass of one walker. With restart probability c,
a node that holds mass m

- adds c*m to its estimate and hands h = (1-c)*m on over its d out-edges (nothing at a dangling node: the walk ends);
- hands it to every edge in proportion to the weights, where that gives h/d >= mu/2 on average: no randomness
  where the mass is large (a synchronous forward push);
- else splits h into round(h/mu) equal packets, placed by systematic sampling: one uniform offset, then equal
  strides over the cumulative weights;
- below one unit, hands on one packet of mu with probability h/mu (Russian roulette).

Every rule is unbiased up to single units of 2**-40, and a draw depends on (seed, source, node, step) only. Sums of
integers do not depend on their order, so no order of edges, threads or partitions changes a bit.

The nodes that a source has reached get compact *slots*, one 32-byte record each, found through an open-addressing
table that stays in the cache. Nodes are advanced without branches, and edges are first located, then fetched
together, then added, so that the memory accesses of many packets overlap instead of waiting for each other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ppr.kernels.rng import below_high, below_low, draw, happens, low_half, stream_key

MASS_BITS = 40
ONE = 1 << MASS_BITS
"""Fixed-point mass of a whole source: 1.0."""
STOP_BITS = 20
"""Fraction bits of the restart probability."""
BATCH = 1024
"""Edges located before they are fetched together."""

# Fields of a slot's record: mass that has arrived, estimate, row begin << 24 | degree, node.
INCOMING, ESTIMATE, ROW, NODE, N_FIELDS = 0, 1, 2, 3, 4
_DEGREE_BITS = 24
_DEGREE_MASK = (1 << _DEGREE_BITS) - 1  # this degree or more: read it from the graph
_CACHE_LINE_WORDS = 8

_FREE = np.int64(-1)
_SLOT_MASK = np.int64(0xFFFFFFFF)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
_FIRST_TABLE_BITS = 10
_1 = np.uint64(1)
_2 = np.uint64(2)


class Scratch(NamedTuple):
    """Working memory of one thread; pages that are not touched cost nothing.

    ``table`` maps a node to its slot, packed as node << 32 | slot, -1 where free; only a prefix, a power of two,
    is in use. ``active`` are the slots with mass at this step; of these, ``pushing`` and ``splitting`` hand on
    ``pushed`` and ``split_mass``. An edge to hand mass to is ``edge`` where unweighted, else the place in a row
    (``edge`` its begin, ``span`` its length) of the cumulative weight ``offset``; ``hand`` and ``target``
    belong to one batch of edges.
    """

    table: NDArray[np.int64]
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


def new_scratch(capacity: int) -> Scratch:
    """Scratch for sources that reach at most ``capacity`` nodes."""
    table_size = 1 << max(_FIRST_TABLE_BITS, (4 * (capacity + BATCH) - 1).bit_length())
    slots = capacity + BATCH
    words = np.zeros(slots * N_FIELDS + _CACHE_LINE_WORDS, np.int64)
    skip = (-words.ctypes.data // words.itemsize) % _CACHE_LINE_WORDS  # no record across two cache lines
    return Scratch(
        table=np.full(table_size, _FREE),
        record=words[skip : skip + slots * N_FIELDS],
        active=np.empty(slots, np.uint32),
        pushing=np.empty(slots, np.uint32),
        pushed=np.empty(slots, np.int64),
        splitting=np.empty(slots, np.uint32),
        split_mass=np.empty(slots, np.int64),
        edge=np.empty(slots, np.uint64),
        span=np.empty(slots, np.int64),
        offset=np.empty(slots, np.int64),
        hand=np.empty(BATCH, np.int64),
        target=np.empty(BATCH, np.int32),
    )


_kernel: Any = njit(cache=True, error_model="numpy", nogil=True)
_inline: Any = njit(cache=True, inline="always")


@_inline
def _hash(node, bits):
    return (np.uint64(node) * _MULTIPLIER) >> np.uint64(64 - bits)


@_inline
def field(slot, name):
    """Index of a slot's field in ``record`` (unsigned: numba then skips its test for negative indices)."""
    return (np.uint64(slot) << _2) | np.uint64(name)


@_kernel
def find_slot(s, node, bits):
    """Slot of ``node``, or -1 where the source has not reached it."""
    at = _hash(node, bits)
    while s.table[at] != _FREE:
        if s.table[at] >> 32 == node:
            return s.table[at] & _SLOT_MASK
        at = (at + _1) & np.uint64((1 << bits) - 1)
    return np.int64(-1)


@_kernel
def _grow_table(s, count, n_slots, bits):
    """Refill the table at a size that ``count`` more nodes leave half empty; returns its bits."""
    while 2 * (n_slots + count) > 1 << bits:
        bits += 1
    table, record = s.table, s.record
    table[: 1 << bits] = _FREE
    for slot in range(n_slots):
        node = record[field(slot, NODE)]
        at = _hash(node, bits)
        while table[at] != _FREE:
            at = (at + _1) & np.uint64((1 << bits) - 1)
        table[at] = (node << 32) | slot
    return bits


@_inline
def _find_edge(cumulative, begin, degree, offset):
    """First edge of a row whose cumulative weight exceeds ``offset``, by bisection without branches."""
    low = begin
    length = degree
    while length > 1:
        half = length >> 1
        low += half if np.int64(cumulative[low + half - 1]) <= offset else 0
        length -= half
    return low


@_kernel
def _deliver(s, graph, first, upto, equal, n_slots, n_active, bits):
    """Fetch the targets of edges [first, upto) and add to each its ``hand``, or ``equal`` where that is positive.

    Returns (n_slots, n_active, bits).
    """
    _, indices, cumulative = graph
    table, record, active = s.table, s.record, s.active
    edge, span, offset, hand, target = s.edge, s.span, s.offset, s.hand, s.target
    count = upto - first
    if 2 * (n_slots + count) > 1 << bits:
        bits = _grow_table(s, count, n_slots, bits)
    if cumulative.size > 0:
        for i in range(first, upto):
            begin = np.int64(edge[i])
            edge[i] = np.uint64(_find_edge(cumulative, begin, span[i], offset[i]))
    for i in range(count):
        target[i] = indices[edge[first + i]]
    wrap = np.uint64((1 << bits) - 1)
    for i in range(count):
        node = np.int64(target[i])
        at = _hash(node, bits)
        entry = table[at]
        while entry >> 32 != node and entry != _FREE:
            at = (at + _1) & wrap
            entry = table[at]
        is_new = entry == _FREE
        slot = n_slots if is_new else entry & _SLOT_MASK
        table[at] = (node << 32) | slot
        record[field(n_slots, NODE)] = node if is_new else 0
        n_slots += is_new
        incoming = field(slot, INCOMING)
        before = record[incoming]
        record[incoming] = before + (equal if equal > 0 else hand[i])
        active[n_active] = slot
        n_active += before == 0
    return n_slots, n_active, bits


@_inline
def _row(indptr, node, row):
    """(begin, degree) of a node's row from its record."""
    begin = row >> _DEGREE_BITS
    degree = row & _DEGREE_MASK
    if degree == _DEGREE_MASK:
        degree = indptr[node + 1] - begin
    return begin, degree


@_inline
def _advance(s, graph, key, unit, stop, reach, n_active):
    """Stop a share of the mass of all active slots and see how each hands on the rest.

    Nodes with less than a unit play roulette here, without a branch; returns (n_single, n_pushing, n_splitting).
    """
    indptr, _, cumulative = graph
    weighted = cumulative.size > 0
    record, active, edge, span, offset = s.record, s.active, s.edge, s.span, s.offset
    pushing, pushed, splitting, split_mass = s.pushing, s.pushed, s.splitting, s.split_mass
    n_single, n_pushing, n_splitting = np.int64(0), np.int64(0), np.int64(0)
    for i in range(n_active):
        slot = active[i]
        mass = record[field(slot, INCOMING)]
        record[field(slot, INCOMING)] = 0
        stopped = (mass * stop) >> STOP_BITS
        record[field(slot, ESTIMATE)] += stopped
        h = mass - stopped
        node = record[field(slot, NODE)]
        begin, degree = _row(indptr, node, record[field(slot, ROW)])
        bits = draw(key, node)
        push = (2 * h >= unit * min(degree, reach)) & (degree <= reach)
        split = (h >= unit) & (not push)
        pushing[n_pushing] = slot
        pushed[n_pushing] = h
        n_pushing += push & (degree > 0)
        splitting[n_splitting] = slot
        split_mass[n_splitting] = h
        n_splitting += split
        if weighted:
            edge[n_single] = np.uint64(begin)
            span[n_single] = degree
            offset[n_single] = low_half(bits)
        else:
            edge[n_single] = np.uint64(begin + below_low(bits, degree))
        n_single += (not push) & (not split) & happens(bits, h, unit)
    return n_single, n_pushing, n_splitting


@_inline
def _deliver_singles(s, graph, n_single, unit, n_slots, bits):
    """Hand a unit to each edge that :func:`_advance` left; returns (n_slots, n_active, bits), -1 when full."""
    cumulative = graph[2]
    n_active = np.int64(0)
    if cumulative.size > 0:
        for i in range(n_single):
            total = np.uint64(cumulative[s.edge[i] + np.uint64(s.span[i] - 1)])
            s.offset[i] = np.int64((np.uint64(s.offset[i]) * total) >> np.uint64(32))
    capacity = s.active.size - BATCH
    for first in range(0, n_single, BATCH):
        upto = min(n_single, first + BATCH)
        n_slots, n_active, bits = _deliver(s, graph, first, upto, unit, n_slots, n_active, bits)
        if n_slots > capacity:
            return np.int64(-1), n_active, bits
    return n_slots, n_active, bits


@_kernel
def _push(s, graph, key, n_pushing, n_slots, n_active, bits):
    """Hand mass to every edge of the pushing nodes, in proportion to the weights.

    Shares are differences of rounded cumulative shares, so that they sum to the whole; the rounding starts at
    a drawn offset. Returns (n_slots, n_active, bits, moves).
    """
    indptr, _, cumulative = graph
    weighted = cumulative.size > 0
    record, edge, span, offsets, hand = s.record, s.edge, s.span, s.offset, s.hand
    capacity = s.active.size - BATCH
    count, moves = np.int64(0), np.int64(0)
    for i in range(n_pushing):
        node = record[field(s.pushing[i], NODE)]
        begin, degree = _row(indptr, node, record[field(s.pushing[i], ROW)])
        total = np.int64(cumulative[begin + degree - 1]) if weighted else degree
        each, rest = _divide(np.uint64(s.pushed[i]), np.uint64(total))
        carry = below_low(draw(key, node), total)
        before, given = np.int64(0), np.int64(0)
        for e in range(begin, begin + degree):
            if weighted:
                upto = np.int64(cumulative[e])
                now = np.int64((np.uint64(rest) * np.uint64(upto) + np.uint64(carry)) // np.uint64(total))
                hand[count] = each * (upto - before) + now - given
                before, given = upto, now
                span[count] = 1
                offsets[count] = 0
            else:
                carry += rest
                extra = carry >= degree
                carry -= degree if extra else 0
                hand[count] = each + extra
            edge[count] = np.uint64(e)
            count += hand[count] > 0
            if count == BATCH:
                n_slots, n_active, bits = _deliver(s, graph, 0, count, 0, n_slots, n_active, bits)
                moves += count
                count = np.int64(0)
                if n_slots > capacity:
                    return np.int64(-1), n_active, bits, moves
    n_slots, n_active, bits = _deliver(s, graph, 0, count, 0, n_slots, n_active, bits)
    return (n_slots if n_slots <= capacity else np.int64(-1)), n_active, bits, moves + count


@_inline
def _divide(a, b):
    """Quotient and remainder of unsigned integers by one division."""
    quotient = a // b
    return np.int64(quotient), np.int64(a - quotient * b)


@_kernel
def _split(s, graph, key, unit, n_splitting, n_slots, n_active, bits):
    """Split the mass of the splitting nodes into equal packets placed by systematic sampling.

    Packet i of k stands at the cumulative weight floor((i * total + u) / k), u uniform in [0, total): each unit of
    weight is met k / total times on average. Returns (n_slots, n_active, bits, moves).
    """
    indptr, _, cumulative = graph
    weighted = cumulative.size > 0
    record, edge, span, offsets, hand = s.record, s.edge, s.span, s.offset, s.hand
    capacity = s.active.size - BATCH
    count, moves = np.int64(0), np.int64(0)
    for i in range(n_splitting):
        node = record[field(s.splitting[i], NODE)]
        begin, degree = _row(indptr, node, record[field(s.splitting[i], ROW)])
        total = np.uint64(cumulative[begin + degree - 1]) if weighted else np.uint64(degree)
        mass = np.uint64(s.split_mass[i])
        k = (_2 * mass + np.uint64(unit)) // (_2 * np.uint64(unit))
        packets = np.int64(k)
        each, rest = _divide(mass, k)
        stride, stride_rest = _divide(total, k)
        drawn = draw(key, node)
        offset, fraction = _divide(np.uint64(below_low(drawn, total)), k)
        carry = below_high(drawn, packets)
        for _ in range(packets):
            if weighted:
                edge[count] = np.uint64(begin)
                span[count] = degree
                offsets[count] = offset
            else:
                edge[count] = np.uint64(begin + offset)
            carry += rest
            extra = carry >= packets
            carry -= packets if extra else 0
            hand[count] = each + extra
            fraction += stride_rest
            over = fraction >= packets
            fraction -= packets if over else 0
            offset += stride + over
            count += 1
            if count == BATCH:
                n_slots, n_active, bits = _deliver(s, graph, 0, count, 0, n_slots, n_active, bits)
                moves += count
                count = np.int64(0)
                if n_slots > capacity:
                    return np.int64(-1), n_active, bits, moves
    n_slots, n_active, bits = _deliver(s, graph, 0, count, 0, n_slots, n_active, bits)
    return (n_slots if n_slots <= capacity else np.int64(-1)), n_active, bits, moves + count


@_kernel
def walk(graph, source, params, s, bits):
    """Walk all mass of one source; leaves the estimates in the slots.

    Parameters
    ----------
    graph
        (indptr int64 [n+1], indices int32 [m], cumulative uint32 [m], or [0] when unweighted).
    source
        Dense node id.
    params
        (stop: restart probability in 2**-20, n_walks, seed, max_steps or -1), all int64.
    s
        Scratch, clear (see :func:`clear`).
    bits
        Size of the table to start with, as a power of two.

    Returns
    -------
    (n_slots, moves, bits)
        Reached nodes, or -1 where the scratch did not suffice (it is then to be thrown away); edges that were handed
        mass; size of the table in use.
    """
    indptr = graph[0]
    stop, n_walks, seed, max_steps = params
    record = s.record
    unit = ONE // n_walks
    reach = 2 * n_walks  # a push needs mass h <= 1 and h / degree >= unit / 2
    s.table[_hash(source, bits)] = source << 32
    record[NODE] = source
    record[INCOMING] = ONE
    s.active[0] = 0
    n_slots, n_known, n_active = np.int64(1), np.int64(0), np.int64(1)
    moves, step = np.int64(0), np.int64(0)
    while n_active > 0:
        # The rows of all nodes reached for the first time, together; none on the last step, where all mass stops.
        for slot in range(n_known, n_slots):
            node = record[field(slot, NODE)]
            begin = indptr[node]
            degree = indptr[node + 1] - begin
            record[field(slot, ROW)] = (begin << _DEGREE_BITS) | min(degree, _DEGREE_MASK)
        n_known = n_slots
        key = stream_key(seed, source, step)
        n_single, n_pushing, n_splitting = _advance(s, graph, key, unit, stop, reach, n_active)
        if step == max_steps:
            break
        n_active = np.int64(0)
        if n_single > 0:
            n_slots, n_active, bits = _deliver_singles(s, graph, n_single, unit, n_slots, bits)
            moves += n_single
        if n_pushing > 0 and n_slots > 0:
            n_slots, n_active, bits, pushed = _push(s, graph, key, n_pushing, n_slots, n_active, bits)
            moves += pushed
        if n_splitting > 0 and n_slots > 0:
            n_slots, n_active, bits, split = _split(s, graph, key, unit, n_splitting, n_slots, n_active, bits)
            moves += split
        if n_slots < 0:
            return n_slots, moves, bits
        step += 1
    return n_slots, moves, bits


@_kernel
def clear(s, n_slots, bits):
    """Forget a source; returns the size of the table to start the next one with, which will be like it."""
    s.table[: 1 << bits] = _FREE
    s.record[: N_FIELDS * (n_slots + 1)] = 0
    bits = np.int64(_FIRST_TABLE_BITS)
    while 1 << bits < 4 * n_slots and 1 << bits < s.table.size:
        bits += 1
    return bits
