"""Messages between parts: who gets them, and in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_kernel: Any = njit(cache=True, error_model="numpy", nogil=True)


@_kernel
def route(first_nodes, until, nodes, n_nodes, owners):
    """Fill ``owners`` with the part in which each node's row begins; returns the messages for each part.

    A node whose row is cut gets its message in every part that holds a piece.
    """
    n_parts = until.size
    counts = np.zeros(n_parts, np.int64)
    for i in range(n_nodes):
        low, length = np.int64(0), np.int64(n_parts)
        while length > 1:  # the last part that begins at or before the node
            half = length >> 1
            low += half if first_nodes[low + half] <= nodes[i] else 0
            length -= half
        owners[i] = low
        last = until[low] if nodes[i] == first_nodes[low + 1] - 1 else low
        for part in range(low, last + 1):
            counts[part] += 1
    return counts


@_kernel
def group(first_nodes, until, owners, messages, starts, out):
    """Copy the messages into ``out``, grouped by part; ``starts`` is where each part's begin."""
    ends = starts.copy()
    for i in range(owners.size):
        part = np.int64(owners[i])
        last = until[part] if messages[1][i] == first_nodes[part + 1] - 1 else part
        while part <= last:
            at = ends[part]
            out[0][at] = messages[0][i]
            out[1][at] = messages[1][i]
            out[2][at] = messages[2][i]
            ends[part] += 1
            part += 1


@_kernel
def sort_by_position(messages, least, n_positions, out):
    """Copy messages into ``out``, ascending by position, equal ones in their order."""
    ends = np.zeros(n_positions + 1, np.int64)
    for position in messages[0]:
        ends[np.int64(position) - least + 1] += 1
    for i in range(n_positions):
        ends[i + 1] += ends[i]
    for i in range(messages[0].size):
        position = np.int64(messages[0][i]) - least
        at = ends[position]
        out[0][at] = messages[0][i]
        out[1][at] = messages[1][i]
        out[2][at] = messages[2][i]
        ends[position] += 1
