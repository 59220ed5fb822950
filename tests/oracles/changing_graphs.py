"""Graphs that change: a lineage of small ones, dense, so that the oracles can read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ppr.graph import Graph


@dataclass(frozen=True)
class Dense:
    """Weights [n, n], 0 where there is no edge, the kind of each node, and removed nodes."""

    weights: NDArray[np.float64]
    kind_ids: NDArray[np.uint8]
    removed: tuple[int, ...] = ()

    def graph(self) -> Graph:
        adjacent = self.weights > 0
        weights = self.weights[adjacent]
        return Graph.from_arrays(
            np.concatenate([[0], np.cumsum(adjacent.sum(axis=1))]),
            np.nonzero(adjacent)[1],
            None if np.all(weights == 1.0) else weights,
            kind_ids=self.kind_ids,
            kinds=("item", "user"),
            removed=self.removed,
        )


def random_dense(rng: np.random.Generator, n_nodes: int, *, kind: str, weighted: bool) -> Dense:
    """A graph that is directed, undirected or bipartite; 0 is a hub, 1 links to nobody by itself."""
    kind_ids = (np.arange(n_nodes) % 2).astype(np.uint8)
    weights = (rng.random((n_nodes, n_nodes)) < 2.5 / n_nodes) * _weights(rng, n_nodes, weighted)
    weights[0] = (rng.random(n_nodes) < 0.7) * _weights(rng, n_nodes, weighted)[0]
    weights[1:2] = 0.0
    return Dense(_shaped(weights, kind_ids, kind), kind_ids)


def changed(rng: np.random.Generator, before: Dense, *, kind: str, weighted: bool, n_changes: int) -> Dense:
    """The next graph: some edges more, less or of other weight; sometimes a node more, a node less."""
    n_new, n_gone = rng.integers(0, 2, 2)
    n_before = len(before.weights)
    n_nodes = n_before + n_new
    weights = np.zeros((n_nodes, n_nodes))
    weights[:n_before, :n_before] = before.weights
    drawn = _weights(rng, n_nodes, weighted)
    for _ in range(n_changes):
        src, dst = rng.integers(n_nodes, size=2)
        weights[src, dst] = 0.0 if weights[src, dst] and rng.random() < 0.5 else drawn[src, dst]
        if kind != "directed":
            weights[dst, src] = weights[src, dst]
    removed = np.unique([*before.removed, *rng.integers(n_before, size=n_gone)]).astype(int)
    weights[removed], weights[:, removed] = 0.0, 0.0
    kind_ids = (np.arange(n_nodes) % 2).astype(np.uint8)
    return Dense(_shaped(weights, kind_ids, kind), kind_ids, tuple(removed.tolist()))


def _weights(rng: np.random.Generator, n_nodes: int, weighted: bool) -> NDArray[np.float64]:
    shape = n_nodes, n_nodes
    if not weighted:
        return np.ones(shape)
    return rng.lognormal(size=shape) if rng.random() < 0.5 else rng.integers(1, 9, shape).astype(float)


def _shaped(weights: NDArray[np.float64], kind_ids: NDArray[np.uint8], kind: str) -> NDArray[np.float64]:
    if kind == "directed":
        return weights
    weights = np.maximum(weights, weights.T)
    return weights * (kind_ids[:, None] != kind_ids) if kind == "bipartite" else weights


@st.composite
def lineages(draw: st.DrawFn, *, length: int = 2, max_nodes: int = 12) -> list[Graph]:
    """Graphs of one lineage."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    kind = draw(st.sampled_from(["directed", "undirected", "bipartite"]))
    weighted = draw(st.booleans())
    one = random_dense(rng, draw(st.integers(1, max_nodes)), kind=kind, weighted=weighted)
    graphs = [one.graph()]
    for _ in range(length - 1):
        one = changed(rng, one, kind=kind, weighted=weighted, n_changes=draw(st.integers(0, 3)))
        graphs.append(one.graph())
    return graphs
