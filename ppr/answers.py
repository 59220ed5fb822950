"""Answers to queries: sparse scores over the nodes, their ranking, and the checks that queries share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppr.errors import ParameterError, UnknownNodeError
from ppr.graph import Graph
from ppr.kernels.rank import rank
from ppr.nodes import first_removed

Query = TypeVar("Query")
Answer = tuple[NDArray[np.int32], NDArray[np.float64]]
"""Ids, each once, and scores, in any order."""
Edges = tuple[ArrayLike, ArrayLike | None]
"""Out-neighbours of a new node and their weights, or None for equal ones."""

_TASKS_PER_THREAD = 8
_INSERTED = 256  # longest ranking that is made by insertion
_NO_NODES = np.empty(0, dtype=np.int32)
_NO_DIVISORS = np.empty(0, dtype=np.float64)
_NO_MASK = np.empty(0, dtype=np.bool_)


def check_nodes(graph: Graph, nodes: ArrayLike) -> NDArray[np.int64]:
    """Node ids as int64 [b].

    Raises
    ------
    UnknownNodeError
        One is not in the graph, or was removed; names the first.
    """
    ids = np.asarray(nodes, dtype=np.int64).reshape(-1)
    outside = ids[(ids < 0) | (ids >= graph.n_nodes)]
    if outside.size:
        raise UnknownNodeError(f"node {outside[0]} is not in the graph (ids are 0 to {graph.n_nodes - 1})")
    gone = first_removed(ids, graph.removed)
    if gone is not None:
        raise UnknownNodeError(f"node {gone} was removed from the graph")
    return ids


def rankable(graph: Graph) -> NDArray[np.bool_]:
    """Which nodes may be in an answer, bool [n], or empty for all.

    A row that was kept from an earlier graph of the lineage may still hold nodes that were removed since.
    """
    return graph.of_kinds(graph.kinds) if graph.removed.size else _NO_MASK


def new_node_shares(graph: Graph, edges: Edges) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Neighbours of a new node, ascending, and their shares of its weight, which sum to 1.

    Raises
    ------
    ParameterError
        There are no edges, or a weight is not positive and finite.
    UnknownNodeError
        A neighbour is not in the graph.
    """
    ids = check_nodes(graph, edges[0])
    weights = np.ones(ids.size) if edges[1] is None else np.asarray(edges[1], dtype=np.float64).reshape(-1)
    if not ids.size:
        raise ParameterError("a new node must have at least one edge (got none)")
    if weights.size != ids.size:
        raise ParameterError(f"a new node must have one weight per edge (got {weights.size} for {ids.size})")
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
    if wrong.size:
        raise ParameterError(
            f"edge {wrong[0]}: 'weight' must be positive and finite (got {weights[wrong[0]]})"
        )
    neighbors, which = np.unique(ids, return_inverse=True)
    sums = np.bincount(which, weights=weights)
    return neighbors, sums / sums.sum()


def rank_answers(
    answers: Callable[[Sequence[Query]], Iterator[Answer]],
    queries: Sequence[Query],
    k: int | None,
    *,
    threads: int | None = None,
    divisors: NDArray[np.float64] = _NO_DIVISORS,
    allowed: NDArray[np.bool_] = _NO_MASK,
    excluded: Callable[[Query], NDArray[np.int32]] = lambda query: _NO_NODES,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Answer all queries on threads and rank each answer, best first, ties by ascending id.

    Parameters
    ----------
    answers
        Answers some of the queries, in order; called from several threads.
    queries
        All of them.
    k
        Entries kept per answer, or None for all.
    threads
        Threads to use, or None for one per core.
    divisors
        Divides the score of each node, float64 [n], or empty for none.
    allowed
        Which nodes may be ranked, bool [n], or empty for all.
    excluded
        Nodes that may not be ranked for a query, ascending.

    Returns
    -------
    ids : int32 [b, w]
        Padded with -1; w is k, or the longest answer.
    scores : float64 [b, w]
        Padded with 0.
    """
    if k is not None and k < 1:
        raise ParameterError(f"'k' must be positive (got {k})")
    if threads is not None and threads < 1:
        raise ParameterError(f"'threads' must be positive (got {threads})")
    n_threads = threads or os.cpu_count() or 1

    def ranked(chunk: Sequence[Query]) -> list[Answer]:
        rankings = []
        for query, (ids, scores) in zip(chunk, answers(chunk), strict=True):
            width = ids.size if k is None else k
            out = np.full(width, -1, dtype=np.int32), np.zeros(width)
            if k is None or k > _INSERTED:
                ids, scores = _sorted(ids, scores, divisors)
            rank(ids, scores, divisors, allowed, excluded(query), *out)
            rankings.append(out)
        return rankings

    size = max(1, -(-len(queries) // (_TASKS_PER_THREAD * n_threads)))
    chunks = [queries[start : start + size] for start in range(0, len(queries), size)]
    if n_threads == 1 or len(chunks) <= 1:
        rankings = [ranking for chunk in chunks for ranking in ranked(chunk)]
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            rankings = [ranking for done in pool.map(ranked, chunks) for ranking in done]
    return _padded(rankings, k)


def _sorted(ids: NDArray[np.int32], scores: NDArray[np.float64], divisors: NDArray[np.float64]) -> Answer:
    """Best first, so that the ranking, which inserts, only appends."""
    order = np.lexsort((ids, -(scores / divisors[ids] if divisors.size else scores)))
    return ids[order], scores[order]


def _padded(rankings: list[Answer], k: int | None) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    width = k if k is not None else max((ids.size for ids, _ in rankings), default=0)
    all_ids = np.full((len(rankings), width), -1, dtype=np.int32)
    all_scores = np.zeros((len(rankings), width))
    for row, (ids, scores) in enumerate(rankings):
        all_ids[row, : ids.size] = ids
        all_scores[row, : ids.size] = scores
    return all_ids, all_scores
