"""Loops of neighbour sampling, compiled. They get checked arrays and fill arrays; they never raise."""

from __future__ import annotations

from numba import njit

from ppr.kernels.rng import below_high, draw, stream_key


@njit(cache=True, nogil=True)
def draw_places(indptr, nodes, seed, step, out):
    """Draw places within rows, uniformly and without replacement; all of a row that is no longer than wanted.

    Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", CACM 1987), with numbers keyed by seed,
    step, node and slot.

    Parameters
    ----------
    indptr
        Bounds of the rows, int64 [n + 1].
    nodes
        Rows to draw from, int64 [b].
    seed, step
        Of the draws.
    out
        Positions of the entries drawn, int64 [b, fan_out], prepared with -1.
    """
    fan_out = out.shape[1]
    for b in range(nodes.size):
        start = indptr[nodes[b]]
        degree = indptr[nodes[b] + 1] - start
        if degree <= fan_out:
            for slot in range(degree):
                out[b, slot] = start + slot
            continue
        key = stream_key(seed, nodes[b], step)
        for slot in range(fan_out):
            last = degree - fan_out + slot
            place = below_high(draw(key, slot), last + 1)
            for earlier in range(slot):
                if out[b, earlier] == start + place:
                    place = last
                    break
            out[b, slot] = start + place
