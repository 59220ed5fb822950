"""Queries by VERD: personalised PageRank composed from stored fingerprints.

With f⁰ = e_u and s⁰ = 0, each of T steps keeps the share that stops and hands on the rest::

    sᵗ = sᵗ⁻¹ + c fᵗ⁻¹        fᵗ = (1 - c) fᵗ⁻¹ P

and the answer is sᵀ + Σ_v fᵀ(v) ĝ_v, with ĝ_v the stored row of v (PowerWalk, CIKM 2016, algorithm 4). Each
row enters with a weight of at most (1 - c)ᵀ, so its error fades and few walks per node suffice. A node that
would hand on less than ``epsilon`` per edge, on average, is answered from its stored row at once: the paper
drops small values, which would lose nearly all of a hub's mass.

A node that is not in the graph is answered from its out-edges alone: s¹ = c e_u and f¹ = (1 - c) times its
normalised weights. Nothing links back to it.

Answers are normalised once, at the end, by the mass that complete rows would give (the stored mass of each
row, never the sum of a truncated one). A walk ends at a dangling node; so normalised, that is the same as
sending it back to the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppr.answers import Answer, Edges, check_nodes, new_node_shares, rank_answers, rankable
from ppr.errors import ParameterError
from ppr.exact import exact_answers, exact_answers_edges
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.kernels.verd import compose, drain


class Verd:
    """Answers queries one at a time; holds scratch of the size of the graph, so one per thread.

    Parameters
    ----------
    graph
        The graph.
    store
        Fingerprints of its nodes, computed without a step limit, target kinds or neighbour exclusion.
    steps
        T, exact steps before stored rows are used.
    epsilon
        Mass per edge below which a node is answered from its row before T steps are done, in [0, 1).

    Raises
    ------
    ParameterError
        A parameter breaks its rule, or the store's rows cannot be composed.
    StoreError
        The store was computed from another graph.
    """

    def __init__(
        self, graph: Graph, store: FingerprintStore, *, steps: int = 2, epsilon: float = 1e-5
    ) -> None:
        store.check_graph(graph)
        check_composable(store)
        if steps < 0:
            raise ParameterError(f"'steps' must not be negative (got {steps})")
        if not 0.0 <= epsilon < 1.0:
            raise ParameterError(f"'epsilon' must be at least 0 and below 1 (got {epsilon})")
        self._graph = graph
        self._store = store
        self._steps = steps
        self._epsilon = epsilon
        self._here, self._there, self._answer = (np.zeros(graph.n_nodes) for _ in range(3))
        self._here_nodes, self._there_nodes, self._answer_nodes = (
            np.empty(graph.n_nodes, dtype=np.int32) for _ in range(3)
        )
        self._cumulative = np.empty(0, dtype=np.uint32) if graph.cumulative is None else graph.cumulative

    def answer(self, node: int) -> Answer:
        """Nodes and normalised scores of a node's personalised PageRank, in no particular order.

        Raises
        ------
        UnknownNodeError
            The node is not in the graph, or a node within reach has no stored row.
        """
        return self._compose(check_nodes(self._graph, [node]), np.ones(1), self._steps, 0.0)

    def answer_edges(self, edges: Edges) -> Answer:
        """Answer for a new node, given by its out-neighbours and their weights (None for equal ones).

        The new node's own share counts in the normalisation; it has no id, so the scores sum to less than 1.

        Raises
        ------
        ParameterError
            There are no edges, a weight is not positive and finite, or ``steps`` is 0.
        UnknownNodeError
            A neighbour is not in the graph, or a node within reach has no stored row.
        """
        if self._steps < 1:
            raise ParameterError(f"'steps' must be positive for a new node (got {self._steps})")
        neighbors, shares = new_node_shares(self._graph, edges)
        restart_prob = self._store.params.restart_prob
        return self._compose(neighbors, (1.0 - restart_prob) * shares, self._steps - 1, restart_prob)

    def _compose(
        self, nodes: NDArray[np.integer], mass: NDArray[np.float64], steps: int, own_mass: float
    ) -> Answer:
        store = self._store
        self._here[nodes] = mass
        self._here_nodes[: nodes.size] = nodes
        n_answer, total, missing = compose(
            self._graph.indptr,
            self._graph.indices,
            self._cumulative,
            store.sources,
            store.indptr,
            store.ids,
            store.scores,
            store.mass,
            store.params.restart_prob,
            steps,
            self._epsilon,
            nodes.size,
            self._here,
            self._here_nodes,
            self._there,
            self._there_nodes,
            self._answer,
            self._answer_nodes,
        )
        ids = self._answer_nodes[:n_answer].copy()
        scores = np.empty(n_answer)
        drain(self._answer, ids, scores)
        if missing >= 0:
            raise store.no_row(
                int(missing), self._graph, "; queries need the rows of all nodes within 'steps'"
            )
        return ids, scores / (total + own_mass)


def query(
    graph: Graph,
    store: FingerprintStore,
    nodes: ArrayLike,
    *,
    steps: int = 2,
    epsilon: float = 1e-5,
    k: int | None = None,
    method: Literal["verd", "exact"] = "verd",
    threads: int | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Personalised PageRank of nodes of the graph, best first.

    Parameters
    ----------
    graph, store, steps, epsilon
        As for :class:`Verd`.
    nodes
        Dense ids, int [b].
    k
        Entries per answer, or None for all of them.
    method
        ``"exact"`` solves by power iteration instead (small graphs); it uses only the store's restart
        probability.
    threads
        Threads to use, or None for one per core. The answers do not depend on it.

    Returns
    -------
    ids : int32 [b, w]
        Best first, ties by ascending id; padded with -1. w is k, or the longest answer.
    scores : float64 [b, w]
        Normalised over all nodes: a complete row sums to 1. Padded with 0.

    Raises
    ------
    UnknownNodeError
        A node is not in the graph, or a node within reach has no stored row.
    ParameterError, StoreError
        As for :class:`Verd`.
    """
    queries: list[int] = check_nodes(graph, nodes).tolist()
    if method == "exact":
        store.check_graph(graph)

    def answers(chunk: Sequence[int]) -> Iterator[Answer]:
        if method == "exact":
            return exact_answers(graph, chunk, restart_prob=store.params.restart_prob)
        verd = Verd(graph, store, steps=steps, epsilon=epsilon)
        return (verd.answer(node) for node in chunk)

    return rank_answers(answers, queries, k, threads=threads, allowed=rankable(graph))


def query_edges(
    graph: Graph,
    store: FingerprintStore,
    edges: Sequence[Edges],
    *,
    steps: int = 2,
    epsilon: float = 1e-5,
    k: int | None = None,
    method: Literal["verd", "exact"] = "verd",
    threads: int | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Personalised PageRank of new nodes, each given by its edges into the graph.

    Parameters
    ----------
    edges
        For each new node its out-neighbours (dense ids, at least one; repeated ones are summed) and their
        weights, or None for equal ones.
    graph, store, steps, epsilon, k, method, threads
        As for :func:`query`; ``steps`` counts the step over the new edges, so it is at least 1.

    Returns
    -------
    ids, scores
        As for :func:`query`. The new node itself, which has no id, is left out but counts in the
        normalisation.

    Raises
    ------
    ParameterError, UnknownNodeError, StoreError
        As for :meth:`Verd.answer_edges`.
    """
    if method == "exact":
        store.check_graph(graph)

    def answers(chunk: Sequence[Edges]) -> Iterator[Answer]:
        if method == "exact":
            return exact_answers_edges(graph, chunk, restart_prob=store.params.restart_prob)
        verd = Verd(graph, store, steps=steps, epsilon=epsilon)
        return (verd.answer_edges(new_node) for new_node in chunk)

    return rank_answers(answers, edges, k, threads=threads, allowed=rankable(graph))


def check_composable(store: FingerprintStore) -> None:
    """Raise ParameterError, with the reason, when rows of the store cannot be composed."""
    params = store.params
    reason = None
    if params.max_steps is not None:
        reason = f"its walks are limited to {params.max_steps} steps ('max_steps')"
    elif params.target_kinds:
        reason = f"its rows hold only some kinds ('target_kinds' is {', '.join(params.target_kinds)})"
    elif params.exclude_neighbors:
        reason = "its rows leave out the source's neighbours ('exclude_neighbors')"
    if reason:
        raise ParameterError(f"{store.path}: cannot answer composed queries: {reason}")
