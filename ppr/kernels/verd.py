"""Kernel of VERD: a few exact steps from the query, then the stored fingerprints of where it got to."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def compose(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    cumulative: NDArray[np.uint32],
    sources: NDArray[np.int32],
    row_indptr: NDArray[np.int64],
    row_ids: NDArray[np.int32],
    row_scores: NDArray[np.float32],
    row_mass: NDArray[np.float64],
    restart_prob: float,
    steps: int,
    epsilon: float,
    n_here: int,
    here: NDArray[np.float64],
    here_nodes: NDArray[np.int32],
    there: NDArray[np.float64],
    there_nodes: NDArray[np.int32],
    answer: NDArray[np.float64],
    answer_nodes: NDArray[np.int32],
) -> tuple[int, float, int]:
    """VERD (PowerWalk, algorithm 4), accumulated in a fixed order.

    Parameters
    ----------
    indptr, indices, cumulative
        The graph; ``cumulative`` is empty for an unweighted one.
    sources, row_indptr, row_ids, row_scores, row_mass
        The stored rows, sources ascending.
    restart_prob, steps, epsilon
        c, T, and the mass per edge, on average, below which a node does not hand on its mass but is
        answered from its stored row, if it has one. Nothing is dropped.
    n_here, here, here_nodes
        Starting mass: ``here[v]`` for the nodes v in ``here_nodes[:n_here]``, zero elsewhere.
    there, there_nodes, answer, answer_nodes
        Scratch of n entries each, values zero.

    Returns
    -------
    tuple[int, float, int]
        Number of nodes in the answer (``answer_nodes`` names them), the mass that the answer would have
        with complete rows, and a node without a stored row, or -1. ``here`` and ``there`` are zero again.
    """
    n_answer = 0
    total = 0.0
    for _ in range(steps):
        n_there = 0
        for i in range(n_here):
            node = here_nodes[i]
            mass = here[node]
            here[node] = 0.0
            start, stop = indptr[node], indptr[node + 1]
            share = (1.0 - restart_prob) * mass
            if share < epsilon * (stop - start):
                row = _row(sources, node)
                if row >= 0:
                    total += mass * row_mass[row]
                    n_answer = _add_row(
                        answer, answer_nodes, n_answer, row_indptr, row_ids, row_scores, row, mass
                    )
                    continue
            n_answer = _add(answer, answer_nodes, n_answer, node, restart_prob * mass)
            total += restart_prob * mass
            if cumulative.size == 0:
                for edge in range(start, stop):
                    n_there = _add(there, there_nodes, n_there, indices[edge], share / (stop - start))
            else:
                below = np.int64(0)
                for edge in range(start, stop):
                    weight = np.int64(cumulative[edge]) - below
                    below = np.int64(cumulative[edge])
                    amount = share * weight / np.int64(cumulative[stop - 1])
                    n_there = _add(there, there_nodes, n_there, indices[edge], amount)
        here, there = there, here
        here_nodes, there_nodes = there_nodes, here_nodes
        n_here = n_there
    missing = -1
    for i in range(n_here):
        node = here_nodes[i]
        mass = here[node]
        here[node] = 0.0
        row = _row(sources, node)
        if row < 0:
            missing = node
            continue
        total += mass * row_mass[row]
        n_answer = _add_row(answer, answer_nodes, n_answer, row_indptr, row_ids, row_scores, row, mass)
    return n_answer, total, missing


@njit(cache=True, nogil=True)
def drain(answer: NDArray[np.float64], nodes: NDArray[np.int32], values: NDArray[np.float64]) -> None:
    """Move ``answer[nodes]`` into ``values`` and leave zeros."""
    for i in range(nodes.size):
        values[i] = answer[nodes[i]]
        answer[nodes[i]] = 0.0


@njit(cache=True, nogil=True)
def _row(sources: NDArray[np.int32], node: int) -> int:
    """Position of a node's stored row, or -1."""
    row = int(np.searchsorted(sources, node))
    return row if row < sources.size and sources[row] == node else -1


@njit(cache=True, nogil=True)
def _add_row(
    values: NDArray[np.float64],
    nodes: NDArray[np.int32],
    n_nodes: int,
    row_indptr: NDArray[np.int64],
    row_ids: NDArray[np.int32],
    row_scores: NDArray[np.float32],
    row: int,
    mass: float,
) -> int:
    """Add a stored row times ``mass`` to a sparse vector and return its number of nodes."""
    for entry in range(row_indptr[row], row_indptr[row + 1]):
        n_nodes = _add(values, nodes, n_nodes, row_ids[entry], mass * row_scores[entry])
    return n_nodes


@njit(cache=True, nogil=True)
def _add(
    values: NDArray[np.float64], nodes: NDArray[np.int32], n_nodes: int, node: int, amount: float
) -> int:
    """Add to a sparse vector and return its number of nodes."""
    if amount == 0.0:  # after underflow; a listed node must not be zero, or it is listed again
        return n_nodes
    if values[node] == 0.0:
        nodes[n_nodes] = node
        n_nodes += 1
    values[node] += amount
    return n_nodes
