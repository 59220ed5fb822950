"""Recommendations: the nodes of some kind that are nearest to a user and that the user has not seen.

The score of an item is its share of the user's personalised PageRank, normalised over all nodes, divided by
the item's in-degree to the power β (``popularity_discount``). With short walks and a mild discount this is
RP³β (Christoffel et al., RecSys 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppr.answers import Answer, Edges, check_nodes, rank_answers
from ppr.errors import ParameterError
from ppr.exact import exact_answers, exact_answers_edges
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.verd import Verd, check_composable

Query = TypeVar("Query")
Recommendations = tuple[NDArray[np.int32], NDArray[np.float32]]


def recommend(
    graph: Graph,
    store: FingerprintStore,
    users: ArrayLike,
    k: int,
    *,
    kinds: Sequence[str] = ("item",),
    exclude_seen: bool = True,
    popularity_discount: float = 0.0,
    method: Literal["auto", "rows", "verd", "exact"] = "auto",
    steps: int = 2,
    epsilon: float = 1e-5,
    threads: int | None = None,
) -> Recommendations:
    """Recommend nodes to nodes of the graph.

    Parameters
    ----------
    graph, store
        The graph and its fingerprints.
    users
        Dense ids, int [b].
    k
        Recommendations per user.
    kinds
        Kinds of the nodes to recommend.
    exclude_seen
        Leave out the user's own out-neighbours. The user is never recommended.
    popularity_discount
        β, not negative: scores are divided by in-degree ** β.
    method
        ``"rows"`` ranks the stored rows as they are, ``"verd"`` composes them (see :mod:`ppr.verd`),
        ``"exact"`` solves by power iteration with the store's restart probability and step limit (small
        graphs); ``"auto"`` composes where the store's rows allow it, else takes rows.
    steps, epsilon
        Parameters of ``"verd"``.
    threads
        Threads to use, or None for one per core. The result does not depend on it.

    Returns
    -------
    ids : int32 [b, k]
        Best first, ties by ascending id; padded with -1 where a user has fewer candidates.
    scores : float32 [b, k]
        Padded with 0.

    Raises
    ------
    UnknownNodeError
        A user or kind is not in the graph, or a row that is needed is not in the store.
    ParameterError
        A parameter breaks its rule, or the store's rows cannot give what is asked for.
    StoreError
        The store was computed from another graph.
    """
    store.check_graph(graph)
    queries: list[int] = check_nodes(graph, users).tolist()
    if method == "auto":
        method = "verd" if store.composable else "rows"
    if method == "rows":
        _check_rows(store, kinds, exclude_seen)
        store.rows(queries, graph)
    elif method == "verd":
        check_composable(store)

    def answers(chunk: Sequence[int]) -> Iterator[Answer]:
        if method == "exact":
            params = store.params
            return exact_answers(graph, chunk, restart_prob=params.restart_prob, max_steps=params.max_steps)
        if method == "rows":
            return _stored_answers(store, chunk)
        verd = Verd(graph, store, steps=steps, epsilon=epsilon)
        return (verd.answer(user) for user in chunk)

    def excluded(user: int) -> NDArray[np.int32]:
        own = np.asarray([user], dtype=np.int32)
        if not exclude_seen:
            return own
        seen = graph.indices[graph.indptr[user] : graph.indptr[user + 1]]
        return np.insert(seen, np.searchsorted(seen, user), user)

    return _recommend(graph, answers, queries, k, kinds, popularity_discount, excluded, threads)


def recommend_new(
    graph: Graph,
    store: FingerprintStore,
    interactions: Sequence[Edges],
    k: int,
    *,
    kinds: Sequence[str] = ("item",),
    exclude_seen: bool = True,
    popularity_discount: float = 0.0,
    method: Literal["verd", "exact"] = "verd",
    steps: int = 2,
    epsilon: float = 1e-5,
    threads: int | None = None,
) -> Recommendations:
    """Recommend nodes to new users, who are not in the graph, from their interactions.

    Parameters
    ----------
    interactions
        For each user the nodes interacted with (dense ids, at least one; repeated ones are summed) and their
        weights, or None for equal ones.
    exclude_seen
        Leave out the nodes interacted with.
    graph, store, k, kinds, popularity_discount, method, steps, epsilon, threads
        As for :func:`recommend`; ``steps`` counts the step over the interactions, so it is at least 1.

    Returns
    -------
    ids, scores
        As for :func:`recommend`.

    Raises
    ------
    ParameterError
        As for :func:`recommend`; or a user has no interactions, or a weight is not positive and finite.
    UnknownNodeError, StoreError
        As for :func:`recommend`.
    """
    store.check_graph(graph)
    if method == "verd":
        check_composable(store)

    def answers(chunk: Sequence[Edges]) -> Iterator[Answer]:
        if method == "exact":
            params = store.params
            return exact_answers_edges(
                graph, chunk, restart_prob=params.restart_prob, max_steps=params.max_steps
            )
        verd = Verd(graph, store, steps=steps, epsilon=epsilon)
        return (verd.answer_edges(edges) for edges in chunk)

    def excluded(edges: Edges) -> NDArray[np.int32]:
        return np.unique(np.asarray(edges[0] if exclude_seen else [], dtype=np.int32))

    return _recommend(graph, answers, interactions, k, kinds, popularity_discount, excluded, threads)


def _recommend(
    graph: Graph,
    answers: Callable[[Sequence[Query]], Iterator[Answer]],
    queries: Sequence[Query],
    k: int,
    kinds: Sequence[str],
    popularity_discount: float,
    excluded: Callable[[Query], NDArray[np.int32]],
    threads: int | None,
) -> Recommendations:
    if not kinds:
        raise ParameterError("'kinds' must name at least one kind (got none)")
    if not 0.0 <= popularity_discount < np.inf:
        raise ParameterError(f"'popularity_discount' must not be negative (got {popularity_discount})")
    ids, scores = rank_answers(
        answers,
        queries,
        k,
        threads=threads,
        divisors=_divisors(graph, popularity_discount),
        allowed=graph.of_kinds(kinds),
        excluded=excluded,
    )
    return ids, scores.astype(np.float32)


def _stored_answers(store: FingerprintStore, users: Sequence[int]) -> Iterator[Answer]:
    for user in users:
        ids, scores, mass = store.row(user)
        yield ids, scores.astype(np.float64) / mass


def _divisors(graph: Graph, popularity_discount: float) -> NDArray[np.float64]:
    """In-degree ** β of each node, float64 [n], or empty when β is 0."""
    if popularity_discount == 0.0:
        return np.empty(0)
    in_degree = np.bincount(graph.indices, minlength=graph.n_nodes) if graph.directed else graph.out_degree
    return np.maximum(in_degree, 1).astype(np.float64) ** popularity_discount


def _check_rows(store: FingerprintStore, kinds: Sequence[str], exclude_seen: bool) -> None:
    """Check that stored rows hold the candidates that are asked for."""
    lacking = set(kinds) - set(store.params.target_kinds)
    if store.params.target_kinds and lacking:
        raise ParameterError(
            f"'kinds' must be among the store's 'target_kinds' "
            f"{', '.join(store.params.target_kinds)} (got {sorted(lacking)[0]!r})"
        )
    if store.params.exclude_neighbors and not exclude_seen:
        raise ParameterError("'exclude_seen' must be true: the store's rows leave out what users have seen")
