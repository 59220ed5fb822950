"""Exact personalised PageRank by power iteration: the truth for small graphs and for tests.

For a source u with indicator e_u, restart probability c and row-sub-stochastic transitions P (rows of
dangling nodes are zero, a walk terminates there)::

    g_u = sum over t >= 0 of c (1 - c)^t e_u P^t

The series is summed until the mass that is still walking, which bounds everything left out, is at most
``tol``. The result is not normalised; ``g_u / g_u.sum()`` is the answer in which dangling nodes link back to
the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppr.answers import Answer, Edges, check_nodes, new_node_shares
from ppr.errors import ParameterError
from ppr.graph import Graph

_BLOCK_COLUMNS = 64


def exact_ppr(
    graph: Graph,
    sources: ArrayLike,
    *,
    restart_prob: float,
    tol: float = 1e-10,
    max_steps: int | None = None,
) -> NDArray[np.float64]:
    """Personalised PageRank of each source over all nodes, not normalised.

    Parameters
    ----------
    graph
        The graph; walks follow its quantised weights.
    sources
        Dense node ids, int [b].
    restart_prob
        Probability c, in (0, 1), that a walk stops at each step.
    tol
        Bound on the L1 error of each row.
    max_steps
        Longest walk in moves, or None for no limit.

    Returns
    -------
    float64 [b, n]
        Row i sums to at most 1; less where walks terminate at dangling nodes or at ``max_steps``.

    Raises
    ------
    UnknownNodeError
        A source is not a node of the graph.
    ParameterError
        A parameter breaks its rule.

    Notes
    -----
    Cost: about ``log(tol) / log(1 - c)`` products of the graph's matrix with b columns.
    """
    nodes = check_nodes(graph, sources)
    start = np.zeros((nodes.size, graph.n_nodes))
    start[np.arange(nodes.size), nodes] = 1.0
    return exact_ppr_from(graph, start, restart_prob=restart_prob, tol=tol, max_steps=max_steps)


def exact_ppr_from(
    graph: Graph,
    start: NDArray[np.float64],
    *,
    restart_prob: float,
    tol: float = 1e-10,
    max_steps: int | None = None,
) -> NDArray[np.float64]:
    """Like :func:`exact_ppr`, for walks that start from distributions over the nodes.

    Parameters
    ----------
    graph, restart_prob, tol, max_steps
        As in :func:`exact_ppr`.
    start
        Starting mass of each query, non-negative, float64 [b, n].

    Returns
    -------
    float64 [b, n]

    Raises
    ------
    ParameterError
        A parameter breaks its rule.
    """
    if not 0.0 < restart_prob < 1.0:
        raise ParameterError(f"'restart_prob' must be between 0 and 1, exclusive (got {restart_prob})")
    if not tol > 0.0:
        raise ParameterError(f"'tol' must be positive (got {tol})")
    if max_steps is not None and max_steps < 0:
        raise ParameterError(f"'max_steps' must not be negative (got {max_steps})")
    incoming = graph.transition().T.tocsr()
    result = np.empty(start.shape)
    for first in range(0, start.shape[0], _BLOCK_COLUMNS):
        block = slice(first, first + _BLOCK_COLUMNS)
        walking = np.ascontiguousarray(start[block].T)
        total = restart_prob * walking
        moves = 0
        while walking.sum(axis=0).max() > tol and moves != max_steps:
            walking = (1.0 - restart_prob) * (incoming @ walking)
            total += restart_prob * walking
            moves += 1
        result[block] = total.T
    return result


def exact_answers(
    graph: Graph, nodes: Sequence[int], *, restart_prob: float, max_steps: int | None = None
) -> Iterator[Answer]:
    """Normalised exact answers for nodes of the graph."""
    for first in range(0, len(nodes), _BLOCK_COLUMNS):
        exact = exact_ppr(
            graph, nodes[first : first + _BLOCK_COLUMNS], restart_prob=restart_prob, max_steps=max_steps
        )
        for row in exact:
            yield _sparse(row / row.sum())


def exact_answers_edges(
    graph: Graph, edges: Sequence[Edges], *, restart_prob: float, max_steps: int | None = None
) -> Iterator[Answer]:
    """Normalised exact answers for new nodes given by their edges; the node itself is left out."""
    limit = None if max_steps is None else max_steps - 1  # the first move goes over the new edges
    for first in range(0, len(edges), _BLOCK_COLUMNS):
        block = edges[first : first + _BLOCK_COLUMNS]
        start = np.zeros((len(block), graph.n_nodes))
        for row, new_node in enumerate(block):
            neighbors, shares = new_node_shares(graph, new_node)
            start[row, neighbors] = (1.0 - restart_prob) * shares
        for answer in exact_ppr_from(graph, start, restart_prob=restart_prob, max_steps=limit):
            yield _sparse(answer / (restart_prob + answer.sum()))


def _sparse(row: NDArray[np.float64]) -> Answer:
    ids = np.flatnonzero(row).astype(np.int32)
    return ids, row[ids]
