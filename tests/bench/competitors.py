"""What a careful user would write instead: power iteration with scipy, and forward push with numba.

Both answer a batch of sources with the ids of the k best nodes each, like a fingerprint row. Both follow the
same walks: edge weights count, and a walk ends at a dangling node.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import scipy.sparse as sp
from numba import njit
from numpy.typing import NDArray

from ppr.graph import Graph

COLUMNS = 64


class PowerIteration:
    """Power iteration in float32 on blocks of 64 columns.

    Iterates y ← c e_u + (1 - c) Pᵀ y, which after T steps has summed the walks of up to T moves: one sparse
    product per step and no second array to add up.
    """

    def __init__(self, graph: Graph, restart_prob: float) -> None:
        incoming: sp.csr_matrix = graph.transition().T.tocsr()
        incoming.data *= 1.0 - restart_prob
        self._incoming = incoming.astype(np.float32)
        self._restart_prob = np.float32(restart_prob)

    def top(self, sources: NDArray[np.int32], n_steps: int, k: int) -> NDArray[np.int32]:
        """Ids of the k best nodes of each source after ``n_steps``, int32 [b, k]."""
        return next(islice(self.tops(sources, k), n_steps - 1, None))

    def tops(self, sources: NDArray[np.int32], k: int) -> Iterator[NDArray[np.int32]]:
        """Yield the ids of the k best nodes after 1, 2, … steps."""
        blocks = [self._iterate(sources[i : i + COLUMNS]) for i in range(0, len(sources), COLUMNS)]
        while True:
            yield np.concatenate([top_of_columns(next(block), k) for block in blocks])

    def _iterate(self, sources: NDArray[np.int32]) -> Iterator[NDArray[np.float32]]:
        columns = np.arange(len(sources))
        values = np.zeros((self._incoming.shape[0], len(sources)), dtype=np.float32)
        values[sources, columns] = self._restart_prob
        while True:
            values = self._incoming @ values
            values[sources, columns] += self._restart_prob
            yield values


class ForwardPush:
    """Forward push (Andersen, Chung, Lang, FOCS 2006) with a first-in first-out queue.

    A node whose residual exceeds ``epsilon`` times its out-degree keeps the share c and hands the rest to its
    neighbours, until there is none.

    Parameters
    ----------
    graph, restart_prob
        What is solved.
    add_residuals
        Add the share c of the residuals to the estimates at the end. Not in the paper, but nearly free, and
        it allows about twice the threshold.
    """

    def __init__(self, graph: Graph, restart_prob: float, *, add_residuals: bool) -> None:
        n_nodes = graph.n_nodes
        self._graph = np.array(graph.indptr), np.array(graph.indices)
        self._probability = graph.transition().data if graph.weighted else np.empty(0)
        self._restart_prob = restart_prob
        self._residual_share = restart_prob if add_residuals else 0.0
        self._values = np.zeros(n_nodes), np.zeros(n_nodes)
        self._queued = np.zeros(n_nodes, dtype=np.bool_)
        self._queue, self._reached = np.empty((2, n_nodes), dtype=np.int32)

    def top(self, sources: NDArray[np.int32], epsilon: float, k: int) -> NDArray[np.int32]:
        """Ids of the k best nodes of each source, int32 [b, k], padded with -1."""
        ids = np.full((len(sources), k), -1, dtype=np.int32)
        values = np.zeros((len(sources), k), dtype=np.float32)
        for row, source in enumerate(sources):
            n_reached = _push(
                *self._graph,
                self._probability,
                np.int64(source),
                self._restart_prob,
                epsilon,
                *self._values,
                self._queued,
                self._queue,
                self._reached,
            )
            _take(*self._values, self._reached[:n_reached], self._residual_share, values[row], ids[row])
        return _sorted(values, ids)


@njit(cache=True, error_model="numpy")
def _push(
    indptr, indices, probability, source, restart_prob, epsilon, estimate, residual, queued, queue, reached
):
    """Push from one source; returns how many nodes were reached. Arrays are clear before."""
    residual[source] = 1.0
    queue[0], queued[source], waiting = source, True, 1
    reached[0], n_reached = source, 1
    head = 0
    while waiting > 0:
        node = queue[head]
        head = head + 1 if head + 1 < queue.size else 0
        waiting -= 1
        queued[node] = False
        mass = residual[node]
        residual[node] = 0.0
        estimate[node] += restart_prob * mass
        begin, end = indptr[node], indptr[node + 1]
        share = (1.0 - restart_prob) * mass
        if probability.size == 0:
            share /= end - begin
        for edge in range(begin, end):
            target = indices[edge]
            if residual[target] == 0.0 and estimate[target] == 0.0:
                reached[n_reached] = target
                n_reached += 1
            residual[target] += share * probability[edge] if probability.size > 0 else share
            degree = indptr[target + 1] - indptr[target]
            if not queued[target] and residual[target] > epsilon * max(degree, 1):
                at = head + waiting
                queue[at if at < queue.size else at - queue.size] = target
                queued[target] = True
                waiting += 1
    return n_reached


@njit(cache=True, error_model="numpy")
def _take(estimate, residual, reached, residual_share, values, ids):
    """Keep the best of the reached nodes and clear the arrays."""
    for node in reached:
        _offer(values, ids, np.float32(estimate[node] + residual_share * residual[node]), node)
        estimate[node] = 0.0
        residual[node] = 0.0


def top_of_columns(matrix: NDArray[np.float32], k: int) -> NDArray[np.int32]:
    """Ids of the k largest positive values of each column, int32 [columns, k]."""
    values = np.zeros((matrix.shape[1], k), dtype=np.float32)
    ids = np.full(values.shape, -1, dtype=np.int32)
    _scan(matrix, values, ids)
    return _sorted(values, ids)


@njit(cache=True, error_model="numpy")
def _scan(matrix, values, ids):
    """Offer all values, row by row: the order in which they lie in memory."""
    for node in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            if matrix[node, column] > values[column, 0]:
                _offer(values[column], ids[column], matrix[node, column], node)


@njit(cache=True, error_model="numpy")
def _offer(values, ids, value, node):
    """Put a value into a heap, smallest first, in place of the smallest, if it is larger."""
    if value <= values[0]:
        return
    at = 0
    while 2 * at + 1 < values.size:
        child = 2 * at + 1
        if child + 1 < values.size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[at], ids[at] = values[child], ids[child]
        at = child
    values[at], ids[at] = value, node


def _sorted(values: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.take_along_axis(ids, np.argsort(-values, axis=1, kind="stable"), axis=1)
