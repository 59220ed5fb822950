"""Walk packets on a part of a graph: the rules of :mod:`ppr.kernels.packets`, for the edges of one range.

A part holds the edges ``[begin, end)`` of the graph, and rows may be cut at either end. What a node hands on
is a function of its whole mass, its whole degree and its whole weight, so every part that holds a piece of
its row decides the same, and hands on what falls to its own edges: the running sums of a push or a split have
closed forms for where a piece begins.

Messages are (position of the source, node, mass), ascending by position. Mass zero is a mark: the node is an
out-neighbour of the source, and is not to be ranked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ppr.kernels.packets import ONE, divide, stopped_share
from ppr.kernels.prefetch import prefetch
from ppr.kernels.rng import below_high, below_low, draw, happens, stream_key
from ppr.kernels.slots import hash_node

MOVES, MASS = -1, -2
"""In place of a node: the record holds a source's moves, or its mass."""
MARK = -1
"""In place of a stopped mass: the node is not to be ranked."""
DONE, FULL, SMALL = 0, 1, 2
"""Why a kernel returned: all is done, the output is full, the scratch is too small for a source."""

_1 = np.uint64(1)
_2 = np.uint64(2)

_kernel: Any = njit(cache=True, error_model="numpy", nogil=True)
_inline: Any = njit(cache=True, inline="always")


class PartScratch(NamedTuple):
    """Working memory of :func:`advance`: a table of nodes, their mass, and the edges of one source's step."""

    table: NDArray[np.uint32]
    node: NDArray[np.int64]
    mass: NDArray[np.int64]
    marked: NDArray[np.bool_]
    edge: NDArray[np.int64]
    hand: NDArray[np.int64]


def new_part_scratch(n_slots: int, n_edges: int) -> PartScratch:
    """Scratch for sources with up to ``n_slots`` messages, which hand mass to up to ``n_edges`` edges."""
    n_entries = 1 << (2 * max(n_slots, n_edges) - 1).bit_length()
    return PartScratch(
        table=np.zeros(n_entries, np.uint32),
        node=np.empty(n_slots, np.int64),
        mass=np.empty(n_slots, np.int64),
        marked=np.empty(n_slots, np.bool_),
        edge=np.empty(n_edges, np.int64),
        hand=np.empty(n_edges, np.int64),
    )


@_inline
def table_bits(n_entries):
    """Size of a table for that many entries, as a power of two."""
    bits = np.int64(3)
    while 1 << bits < 2 * n_entries:
        bits += 1
    return bits


@_kernel
def _sum_nodes(s, part, nodes, masses, first, last):
    """Add up the mass of each node of one source; returns the number of slots."""
    indptr, least = part[0], part[3]
    bits = table_bits(last - first)
    wrap = np.uint64((1 << bits) - 1)
    s.table[: 1 << bits] = 0
    n_slots = np.int64(0)
    for i in range(first, last):
        node = np.int64(nodes[i])
        at = hash_node(node, bits)
        entry = np.int64(s.table[at])
        while entry != 0 and s.node[entry - 1] != node:
            at = (at + _1) & wrap
            entry = np.int64(s.table[at])
        if entry == 0:
            s.node[n_slots] = node
            s.mass[n_slots] = 0
            s.marked[n_slots] = False
            prefetch(indptr, np.uint64(node - least))
            n_slots += 1
            entry = n_slots
            s.table[at] = np.uint32(entry)
        s.mass[entry - 1] += masses[i]
        s.marked[entry - 1] |= masses[i] == 0
    return n_slots


@_inline
def _push(s, part, row, bits, h, count):
    """As :func:`ppr.kernels.packets._push`, for the edges from ``low`` to ``high``; -1 without space."""
    cumulative, base = part[2], part[4]
    begin, low, high, weight, total = row
    if count + high - low > s.edge.size:
        return np.int64(-1)
    each, rest = divide(np.uint64(h), np.uint64(total))
    carry = below_low(bits, total)
    if cumulative.size > 0:
        given = np.int64((np.uint64(rest) * np.uint64(weight) + np.uint64(carry)) // np.uint64(total))
        for e in range(low, high):
            upto = np.int64(cumulative[e - base])
            now = np.int64((np.uint64(rest) * np.uint64(upto) + np.uint64(carry)) // np.uint64(total))
            s.edge[count] = e - base
            s.hand[count] = each * (upto - weight) + now - given
            count += s.hand[count] > 0
            weight, given = upto, now
    else:
        carry = (carry + (low - begin) * rest) % total
        for e in range(low, high):
            carry += rest
            extra = carry >= total
            carry -= total if extra else 0
            s.edge[count] = e - base
            s.hand[count] = each + extra
            count += 1
    return count


@_inline
def _split(s, part, row, bits, h, unit, count):
    """As :func:`ppr.kernels.packets._split`, for the packets on the edges from ``low`` to ``high``."""
    cumulative, base = part[2], part[4]
    begin, low, high, weight, total = row
    k = np.int64((_2 * np.uint64(h) + np.uint64(unit)) // (_2 * np.uint64(unit)))
    upto = np.int64(cumulative[high - 1 - base]) if cumulative.size > 0 else high - begin
    drawn, carry = below_low(bits, total), below_high(bits, k)
    # Packet i stands at (i * total + drawn) // k: those from weight on, and below upto.
    first = max((weight * k - drawn + total - 1) // total, np.int64(0))
    last = min((upto * k - drawn + total - 1) // total, k)
    if count + last - first > s.edge.size:
        return np.int64(-1)
    each, rest = divide(np.uint64(h), np.uint64(k))
    stride, stride_rest = divide(np.uint64(total), np.uint64(k))
    offset, fraction = divide(np.uint64(first) * np.uint64(total) + np.uint64(drawn), np.uint64(k))
    carry = (carry + first * rest) % k
    for _ in range(first, last):
        if cumulative.size > 0:
            s.edge[count] = _find_edge(cumulative, low - base, high - low, offset)
        else:
            s.edge[count] = begin + offset - base
            prefetch(part[1], np.uint64(s.edge[count]))
        carry += rest
        extra = carry >= k
        carry -= k if extra else 0
        s.hand[count] = each + extra
        count += 1
        fraction += stride_rest
        over = fraction >= k
        fraction -= k if over else 0
        offset += stride + over
    return count


@_inline
def _find_edge(cumulative, low, length, wanted):
    """First of ``length`` edges from ``low`` whose cumulative weight exceeds ``wanted``."""
    while length > 1:
        half = length >> 1
        low += half if np.int64(cumulative[low + half - 1]) <= wanted else 0
        length -= half
    return low


@_kernel
def _hand_on(s, part, node, h, bits, unit, reach, count):
    """Hand the mass of a node on over the edges that the part holds; returns as :func:`_push` does."""
    indptr, indices, cumulative, least, base, weight_before, weight_cut = part
    begin, end = indptr[node - least], indptr[node - least + 1]
    degree = end - begin
    low, high = max(begin, base), min(end, base + indices.size)
    if low >= high:
        return count
    if cumulative.size > 0:
        total = np.int64(cumulative[end - 1 - base]) if end == high else weight_cut
        weight = weight_before if low > begin else np.int64(0)
    else:
        total, weight = degree, low - begin
    row = (begin, low, high, weight, total)
    if degree <= reach and 2 * h >= unit * degree:
        return _push(s, part, row, bits, h, count)
    if h >= unit:
        return _split(s, part, row, bits, h, unit, count)
    if happens(bits, h, unit):
        if count >= s.edge.size:
            return np.int64(-1)
        offset = below_low(bits, total)
        if cumulative.size > 0:
            here = weight <= offset and offset < np.int64(cumulative[high - 1 - base])
            if here:
                s.edge[count] = _find_edge(cumulative, low - base, high - low, offset)
        else:
            here = low - begin <= offset and offset < high - begin
            s.edge[count] = begin + offset - base
            prefetch(indices, np.uint64(s.edge[count]) if here else np.uint64(0))
        s.hand[count] = unit
        count += here
    return count


@_kernel
def _combine(s, indices, count, sent, used, position):
    """Add up what the edges hand to each target, into the output; returns the entries used."""
    positions, nodes, masses = sent
    bits = table_bits(count)
    wrap = np.uint64((1 << bits) - 1)
    s.table[: 1 << bits] = 0
    first = used
    for i in range(count):
        s.edge[i] = indices[s.edge[i]]
    for i in range(count):
        node = s.edge[i]
        at = hash_node(node, bits)
        entry = np.int64(s.table[at])
        while entry != 0 and nodes[first + entry - 1] != node:
            at = (at + _1) & wrap
            entry = np.int64(s.table[at])
        if entry == 0:
            positions[used] = position
            nodes[used] = node
            masses[used] = 0
            used += 1
            entry = used - first
            s.table[at] = np.uint32(entry)
        masses[first + entry - 1] += s.hand[i]
    return used


@_inline
def _mark_neighbors(part, source, sent, used, position):
    """Send a mark to each out-neighbour of a source that the part holds; returns the entries used."""
    indptr, indices, _, least, base, _, _ = part
    low = max(indptr[source - least], base)
    high = min(indptr[source - least + 1], base + indices.size)
    for e in range(low, high):
        sent[0][used] = position
        sent[1][used] = indices[e - base]
        sent[2][used] = 0
        used += 1
    return used


@_kernel
def advance(part, first_own, walkers, first_position, messages, start, params, s, sent, stops):
    """Take one step with the sources whose messages begin at ``start``, until the output is full.

    Parameters
    ----------
    part
        (indptr int64 [rows + 1], indices int32 [edges], cumulative uint32 [edges] or [0], least node, base:
        edge at which the part begins, weight of the first row before it, weight of the last row's whole).
    first_own
        Nodes from here on have the beginning of their row in this part, which counts what stops on them.
    walkers
        (sources int32, steps int32) of the positions from ``first_position`` on.
    messages
        (positions uint32, nodes int32, masses int64), ascending by position; all of a source, for this part.
    params
        (stop: restart probability in 2**-20, n_walks, seed, max_steps or -1, mark_neighbors).
    s
        Scratch.
    sent, stops
        Output, each (positions uint32, nodes int32, masses or stopped masses int64).

    Returns
    -------
    (next, n_sent, n_stops, why)
        First message of the first source not done, entries written, and why it ended there.
    """
    positions, nodes, masses = messages
    sources, steps = walkers
    stop, n_walks, seed, max_steps, mark_neighbors = params
    unit = np.int64(ONE // n_walks)
    reach = 2 * n_walks
    n_sent, n_stops = np.int64(0), np.int64(0)
    while start < positions.size:
        position = positions[start]
        end = start + 1
        while end < positions.size and positions[end] == position:
            end += 1
        if end - start > s.node.size:
            return start, n_sent, n_stops, SMALL
        walker = np.int64(position) - first_position
        source, step = np.int64(sources[walker]), np.int64(steps[walker])
        n_slots = _sum_nodes(s, part, nodes, masses, start, end)
        if n_stops + 2 * n_slots + 1 > stops[0].size:
            return start, n_sent, n_stops, FULL
        key = stream_key(seed, source, step)
        count, used = np.int64(0), n_stops
        for slot in range(n_slots):
            node, mass = s.node[slot], s.mass[slot]
            stopped = stopped_share(mass, stop)
            if node >= first_own:
                for what, wanted in ((stopped, mass > 0), (np.int64(MARK), s.marked[slot])):
                    stops[0][used] = position
                    stops[1][used] = node
                    stops[2][used] = what
                    used += wanted
            if mass > 0 and step != max_steps:
                count = _hand_on(s, part, node, mass - stopped, draw(key, node), unit, reach, count)
                if count < 0:
                    return start, n_sent, n_stops, SMALL
        n_marks = part[1].size if mark_neighbors and step == 0 else 0
        if n_marks > 0:
            row = part[0][source - part[3] : source - part[3] + 2]
            n_marks = min(n_marks, row[1] - row[0])
        if n_sent + count + n_marks > sent[0].size:
            return start, n_sent, n_stops, FULL
        if n_marks > 0:
            n_sent = _mark_neighbors(part, source, sent, n_sent, position)
        n_sent = _combine(s, part[1], count, sent, n_sent, position)
        stops[0][used] = position
        stops[1][used] = MOVES
        stops[2][used] = count
        n_stops = used + (count > 0)
        start = end
    return start, n_sent, n_stops, DONE
