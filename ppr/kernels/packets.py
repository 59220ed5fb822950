"""Walk packets: Monte Carlo personalised PageRank that moves mass instead of walkers.

The complete-path estimator (MCFP; Avrachenkov et al., SIAM J. Numer. Anal. 2007; PowerWalk, CIKM 2016)
counts all visits of R walks from a source. Here one level of all walks is advanced at once, as *mass on
nodes*, in fixed-point integers of 2**-40; the unit mu = 2**40 / R is the mass of one walker. With restart
probability c, a node that holds mass m

- adds c*m to its estimate and hands h = (1-c)*m on over its d out-edges (nothing at a dangling node: the
  walk ends);
- hands it to every edge in proportion to the weights, where that gives h/d >= mu/2 on average and d <= 2 R:
  no randomness where the mass is large (a synchronous forward push);
- else splits h into round(h/mu) equal packets, placed by systematic sampling: one uniform offset, then equal
  strides over the cumulative weights;
- below one unit, hands on one packet of mu with probability h/mu (Russian roulette).

Every rule is unbiased, up to single units of 2**-40 and, in the roulette, to 2**-24 of mu; a draw depends on
(seed, source, node, step) only. Sums of integers do not depend on their order, so no order of edges, threads
or partitions changes a bit. Roulette keeps the mass of all walks at 1 on average only: where walks are few, a
node may come to hold more than 1.

The nodes that a source has reached get compact slots (:mod:`ppr.kernels.slots`). Nodes are advanced without
branches, and edges are first located, then fetched together, then added; rows and edges are prefetched as
soon as they are known. So the memory accesses of many packets overlap instead of waiting for each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ppr.kernels.prefetch import prefetch
from ppr.kernels.rng import below_high, below_low, draw, happens, low_half, stream_key
from ppr.kernels.slots import (
    ESTIMATE,
    INCOMING,
    NODE,
    ROW,
    field,
    hash_node,
    packed_row,
    refill_table,
    row_of,
)

MASS_BITS = 40
ONE = 1 << MASS_BITS
"""Fixed-point mass of a whole source: 1.0."""
STOP_BITS = 20
"""Fraction bits of the restart probability."""
_STOP_MASK = (1 << STOP_BITS) - 1
_1 = np.uint64(1)
_2 = np.uint64(2)
_32 = np.uint64(32)

_kernel: Any = njit(cache=True, error_model="numpy", nogil=True)
_inline: Any = njit(cache=True, inline="always")


@_inline
def divide(a, b):
    """Quotient and remainder of unsigned integers by one division."""
    quotient = a // b
    return np.int64(quotient), np.int64(a - quotient * b)


@_inline
def stopped_share(mass, stop):
    """What of a mass stops: mass * stop >> STOP_BITS, without overflow where more than 8 has piled up."""
    return (mass >> STOP_BITS) * stop + (((mass & _STOP_MASK) * stop) >> STOP_BITS)


@_inline
def _advance(s, graph, key, unit, stop, reach, n_active):
    """Stop a share of the mass of all active slots and see how each hands on the rest.

    Nodes with less than a unit play roulette here, without a branch; returns (n_edges, n_pushing,
    n_splitting).
    """
    indptr, indices, cumulative = graph
    weighted = cumulative.size > 0
    record, active, edge, span, offset, hand = s.record, s.active, s.edge, s.span, s.offset, s.hand
    pushing, pushed, splitting, split_mass = s.pushing, s.pushed, s.splitting, s.split_mass
    count, n_pushing, n_splitting = np.int64(0), np.int64(0), np.int64(0)
    for i in range(n_active):
        slot = active[i]
        mass = record[field(slot, INCOMING)]
        record[field(slot, INCOMING)] = 0
        stopped = stopped_share(mass, stop)
        record[field(slot, ESTIMATE)] += stopped
        h = mass - stopped
        node = record[field(slot, NODE)]
        begin, degree = row_of(indptr, node, record[field(slot, ROW)])
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
            edge[count] = np.uint64(begin)
            span[count] = degree
            offset[count] = low_half(bits)
        else:
            edge[count] = np.uint64(begin + below_low(bits, degree))
            prefetch(indices, edge[count])
        hand[count] = unit
        count += (not push) & (not split) & happens(bits, h, unit)
    if weighted:
        for i in range(count):
            total = np.uint64(cumulative[edge[i] + np.uint64(span[i] - 1)])
            offset[i] = np.int64((np.uint64(offset[i]) * total) >> _32)
    return count, n_pushing, n_splitting


@_inline
def _stop(s, stop, n_active):
    """Stop a share of the mass of all active slots; the rest goes nowhere."""
    record, active = s.record, s.active
    for i in range(n_active):
        slot = active[i]
        record[field(slot, ESTIMATE)] += stopped_share(record[field(slot, INCOMING)], stop)
        record[field(slot, INCOMING)] = 0


@_inline
def _push(s, graph, key, n_pushing, count):
    """Hand mass to every edge of the pushing nodes, in proportion to the weights.

    Shares are differences of rounded cumulative shares, so that they sum to the whole; the rounding starts at
    a drawn offset. Returns the number of edges, -1 where there is no space for them.
    """
    indptr, indices, cumulative = graph
    weighted = cumulative.size > 0
    record, edge, span, offsets, hand = s.record, s.edge, s.span, s.offset, s.hand
    pushing, pushed = s.pushing, s.pushed
    for i in range(n_pushing):
        node = record[field(pushing[i], NODE)]
        begin, degree = row_of(indptr, node, record[field(pushing[i], ROW)])
        if count + degree >= edge.size:
            count = np.int64(-1)
            break
        total = np.int64(cumulative[begin + degree - 1]) if weighted else degree
        each, rest = divide(np.uint64(pushed[i]), np.uint64(total))
        carry = below_low(draw(key, node), total)
        if weighted:
            before, given = np.int64(0), np.int64(0)
            for e in range(begin, begin + degree):
                upto = np.int64(cumulative[e])
                now = np.int64((np.uint64(rest) * np.uint64(upto) + np.uint64(carry)) // np.uint64(total))
                edge[count] = np.uint64(e)
                span[count] = 1
                offsets[count] = 0
                hand[count] = each * (upto - before) + now - given
                count += hand[count] > 0
                before, given = upto, now
        else:
            prefetch(indices, np.uint64(begin))
            for e in range(begin, begin + degree):
                carry += rest
                extra = carry >= degree
                carry -= degree if extra else 0
                edge[count] = np.uint64(e)
                hand[count] = each + extra
                count += 1
    return count


@_inline
def _split(s, graph, key, unit, n_splitting, count):
    """Split the mass of the splitting nodes into equal packets placed by systematic sampling.

    Packet i of k stands at the cumulative weight floor((i * total + u) / k), u uniform in [0, total): each
    unit of weight is met k / total times on average. Returns as :func:`_push` does.
    """
    indptr, indices, cumulative = graph
    weighted = cumulative.size > 0
    record, edge, span, offsets, hand = s.record, s.edge, s.span, s.offset, s.hand
    splitting, split_mass = s.splitting, s.split_mass
    for i in range(n_splitting):
        node = record[field(splitting[i], NODE)]
        begin, degree = row_of(indptr, node, record[field(splitting[i], ROW)])
        total = np.uint64(cumulative[begin + degree - 1]) if weighted else np.uint64(degree)
        mass = np.uint64(split_mass[i])
        k = (_2 * mass + np.uint64(unit)) // (_2 * np.uint64(unit))
        packets = np.int64(k)
        if count + packets >= edge.size:
            count = np.int64(-1)
            break
        each, rest = divide(mass, k)
        stride, stride_rest = divide(total, k)
        drawn = draw(key, node)
        offset, fraction = divide(np.uint64(below_low(drawn, total)), k)
        carry = below_high(drawn, packets)
        for _ in range(packets):
            if weighted:
                edge[count] = np.uint64(begin)
                span[count] = degree
                offsets[count] = offset
            else:
                edge[count] = np.uint64(begin + offset)
                prefetch(indices, edge[count])
            carry += rest
            extra = carry >= packets
            carry -= packets if extra else 0
            hand[count] = each + extra
            count += 1
            fraction += stride_rest
            over = fraction >= packets
            fraction -= packets if over else 0
            offset += stride + over
    return count


@_inline
def _find_edges(s, cumulative, count):
    """Edges of a weighted graph: the first of each row whose cumulative weight exceeds the offset."""
    edge, span, offset = s.edge, s.span, s.offset
    for i in range(count):
        low = np.int64(edge[i])
        length = span[i]
        wanted = offset[i]
        while length > 1:  # bisection without branches
            half = length >> 1
            low += half if np.int64(cumulative[low + half - 1]) <= wanted else 0
            length -= half
        edge[i] = np.uint64(low)


@_inline
def _deliver(s, indptr, indices, count, n_slots, bits):
    """Add the mass of the edges to their targets; returns (n_slots, n_active)."""
    table, record, active, edge, hand, target = s.table, s.record, s.active, s.edge, s.hand, s.target
    for i in range(count):
        target[i] = indices[edge[i]]
    wrap = np.uint64((1 << bits) - 1)
    n_active = np.int64(0)
    for i in range(count):
        node = np.int64(target[i])
        at = hash_node(node, bits)
        # The next new slot holds the node already: where the entry is free, the search ends there.
        record[field(n_slots, NODE)] = node
        entry = np.int64(table[at])
        slot = n_slots if entry == 0 else entry - 1
        while record[field(slot, NODE)] != node:
            at = (at + _1) & wrap
            entry = np.int64(table[at])
            slot = n_slots if entry == 0 else entry - 1
        table[at] = np.uint32(slot + 1)
        is_new = slot == n_slots
        prefetch(indptr, np.uint64(node) if is_new else np.uint64(0))
        n_slots += is_new
        incoming = field(slot, INCOMING)
        before = record[incoming]
        record[incoming] = before + hand[i]
        active[n_active] = slot
        n_active += before == 0
    return n_slots, n_active


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
        Scratch, clear (see :func:`ppr.kernels.slots.clear`).
    bits
        Size of the table to start with, as a power of two.

    Returns
    -------
    (n_slots, moves, bits)
        Reached nodes, or -1 where the scratch did not suffice (it is then to be thrown away); edges that
        were handed mass; size of the table in use.
    """
    indptr, indices, cumulative = graph
    stop, n_walks, seed, max_steps = params
    record = s.record
    capacity = s.active.size - 1
    unit = ONE // n_walks
    reach = 2 * n_walks  # bounds unit * degree; a mass of 1 is never enough to push to more edges
    s.table[hash_node(source, bits)] = np.uint32(1)
    record[NODE] = source
    record[INCOMING] = ONE
    s.active[0] = 0
    n_slots, n_known, n_active = np.int64(1), np.int64(0), np.int64(1)
    moves, step = np.int64(0), np.int64(0)
    while n_active > 0:
        # The rows of all nodes reached for the first time, together: their accesses overlap.
        for slot in range(n_known, n_slots):
            node = record[field(slot, NODE)]
            record[field(slot, ROW)] = packed_row(indptr, node)
        n_known = n_slots
        if n_active >= s.edge.size:
            return np.int64(-1), moves, bits
        if step == max_steps:
            _stop(s, stop, n_active)
            break
        key = stream_key(seed, source, step)
        count, n_pushing, n_splitting = _advance(s, graph, key, unit, stop, reach, n_active)
        count = _push(s, graph, key, n_pushing, count)
        if count >= 0:
            count = _split(s, graph, key, unit, n_splitting, count)
        # A slot for every edge is asked for, as if all targets were new, but never more than there are nodes.
        wanted = min(n_slots + count, indptr.size - 1)
        if count < 0 or wanted > capacity:
            return np.int64(-1), moves, bits
        if 2 * wanted > 1 << bits:
            while 2 * wanted > 1 << bits:
                bits += 1
            refill_table(s, n_slots, bits)
        if cumulative.size > 0:
            _find_edges(s, cumulative, count)
        n_slots, n_active = _deliver(s, indptr, indices, count, n_slots, bits)
        moves += count
        step += 1
    return n_slots, moves, bits
