"""What a graph says of users: their items, and who and what is near to them, known to it or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppr.answers import Answer, rank_answers
from ppr.errors import UnknownNodeError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.verd import Verd
from router.bundle import ITEM, USER
from router.errors import NotInReleaseError, UnknownNameError

Weights = dict[Any, float]


class Surroundings:
    """Users, items and what ties them, as the router takes it. Threads may share it.

    Parameters
    ----------
    graph
        Graph of users and items that the router was trained with.
    fingerprints
        Fingerprints of it, or None: then nobody is near.
    top_k
        Users, and items, taken of what is near.
    """

    def __init__(self, graph: Graph, fingerprints: FingerprintStore | None, top_k: int) -> None:
        self.graph = graph
        self.fingerprints = fingerprints
        self.top_k = top_k
        self._lock = Lock()  # a Verd has scratch of the size of the graph, so there is one

    @property
    def answers_queries(self) -> bool:
        """Whether stored rows can be composed (:mod:`ppr.verd`), and those of all nodes are there."""
        store = self.fingerprints
        n_live = self.graph.n_nodes - self.graph.removed.size
        return store is not None and store.composable and 0 < store.n_sources == n_live

    def node(self, kind: str, key: Any) -> int | None:
        """Node of a key, or None where the graph has no such node."""
        try:
            return int(self.graph.ids([key], kind)[0])
        except UnknownNodeError:
            return None

    def of(self, key: Any) -> dict[str, Weights]:
        """Weights of a user's ``items``, ``near`` users and ``near_items``; empty for one who is unknown."""
        node = self.node(USER, key)
        if node is None:
            return {}
        items = {"items": self.by_key(*self.items(node))}
        if self.fingerprints is None:
            return items
        ids, scores, _ = self.fingerprints.row(node, self.graph)
        return items | self._near((ids, scores.astype(np.float64)), node)

    def of_new(self, items: Mapping[Any, float]) -> dict[str, Weights]:
        """The same for a user who is not in the graph, from weights of items; unknown items are left out."""
        nodes = {key: self.node(ITEM, key) for key in items}
        known = {key: node for key, node in nodes.items() if node is not None}
        if not known:
            return {}
        found = {"items": {key: float(items[key]) for key in known}}
        if not self.answers_queries:
            return found
        edges = list(known.values()), list(found["items"].values())
        with self._lock:
            answer = self._verd.answer_edges(edges)
        return found | self._near(answer)

    def near_all(self, nodes: Iterable[int], k: int, *, leave_out: bool) -> Weights:
        """Users near to several users: the mean of their personalised PageRank, best first.

        Parameters
        ----------
        nodes
            The users; at least one.
        k
            Length of the answer.
        leave_out
            Leave them out.

        Raises
        ------
        NotInReleaseError
            There are no fingerprints of all nodes that can be composed.
        """
        if not self.answers_queries:
            raise NotInReleaseError("users near to users come from complete fingerprints, and there are none")
        given = np.unique(np.fromiter(nodes, dtype=np.int32))
        with self._lock:
            answers = [self._verd.answer(int(node)) for node in given]
        ids, places = np.unique(np.concatenate([ids for ids, _ in answers]), return_inverse=True)
        mean = np.bincount(places, np.concatenate([scores for _, scores in answers])) / given.size
        return self.by_key(*self._best((ids, mean), USER, k, given if leave_out else given[:0]))

    def items(self, node: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Items that a node has edges to, and their weights."""
        ids = self.graph.indices[self.graph.indptr[node] : self.graph.indptr[node + 1]]
        of_kind = self._mask(ITEM)[ids]
        return ids[of_kind], self.graph.weights(node)[of_kind]

    def by_key(self, ids: NDArray[np.int32], weights: NDArray[np.floating]) -> Weights:
        """Weights by the nodes' keys, in their order."""
        return dict(zip(self.graph.keys(ids).tolist(), weights.tolist(), strict=True))

    def _near(self, answer: Answer, node: int | None = None) -> dict[str, Weights]:
        """Best users and items of an answer, without the node itself."""
        itself = np.array([] if node is None else [node], dtype=np.int32)
        kinds = {"near": USER, "near_items": ITEM}
        return {
            name: self.by_key(*self._best(answer, kind, self.top_k, itself)) for name, kind in kinds.items()
        }

    def _best(
        self, answer: Answer, kind: str, k: int, left_out: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        ids, scores = rank_answers(
            lambda _: iter([answer]), [0], k, threads=1, allowed=self._mask(kind), excluded=lambda _: left_out
        )
        found = ids[0] >= 0
        return ids[0][found], scores[0][found]

    def _mask(self, kind: str) -> NDArray[np.bool_]:
        return self._masks[kind]

    @cached_property
    def _masks(self) -> dict[str, NDArray[np.bool_]]:
        """Nodes of each kind, bool [n]."""
        kinds = self.graph.kinds
        for kind in (USER, ITEM):
            if kind not in kinds:
                raise UnknownNameError(f"{self.graph.path}: no nodes of kind {kind!r} (it has {kinds})")
        return {kind: self.graph.of_kinds([kind]) for kind in (USER, ITEM)}

    @cached_property
    def _verd(self) -> Verd:
        assert self.fingerprints is not None
        return Verd(self.graph, self.fingerprints)
