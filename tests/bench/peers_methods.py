"""Personalised PageRank of other packages, each through its public interface: the best nodes of sources.

A class prepares a graph once, in the form that suits the package; what its calls repeat for every source or
batch is part of their time. ``top`` gives ids, best first, int32 [b, WIDTH], padded with -1. Where a package
gives all values of a source, the compiled heap of :mod:`competitors` chooses: none pays for a sort in Python.
"""

from __future__ import annotations

import logging
import warnings
from heapq import nlargest
from operator import itemgetter
from typing import Protocol

import igraph
import networkit
import numba
import numpy as np
import scipy.sparse as sp
import torch
from competitors import top_of_columns
from contest import WIDTH
from datasets import RESTART_PROB
from numpy.typing import NDArray
from sknetwork.ranking import PageRank
from torch_geometric import EdgeIndex
from torch_geometric.utils import get_ppr
from torch_ppr.utils import batched_personalized_page_rank

from ppr.graph import Graph

_BATCH = 64
_value = itemgetter(1)


class Peer(Protocol):
    """What a method offers."""

    def top(self, sources: NDArray[np.int32], setting: float) -> NDArray[np.int32]:
        """Ids of the best nodes of each source at a setting of the method's knob, int32 [b, WIDTH]."""
        ...


class PyG:
    """``get_ppr``: forward push with dictionaries; ``eps`` is its threshold, in units of ``alpha``."""

    def __init__(self, graph: Graph) -> None:
        row, col = _edges(graph)
        edges = torch.from_numpy(np.stack([row, col]).astype(np.int64))
        # Sorted once here, so that no call sorts again.
        self._edges = EdgeIndex(
            edges, sparse_size=(graph.n_nodes, graph.n_nodes), sort_order="row"
        ).fill_cache_()
        self._n_nodes = graph.n_nodes

    def top(self, sources: NDArray[np.int32], setting: float) -> NDArray[np.int32]:
        edges, weight = get_ppr(
            self._edges,
            alpha=RESTART_PROB,
            eps=1.0 / setting,
            target=torch.from_numpy(sources.astype(np.int64)),
            num_nodes=self._n_nodes,
        )
        row, col = edges.numpy()
        cuts = np.flatnonzero(np.diff(row)) + 1  # rows of a source lie together, in the order asked for
        parts = zip(np.split(col, cuts), np.split(weight.numpy(), cuts), strict=True)
        return np.stack([_best(ids, values) for ids, values in parts])


class ScikitNetwork:
    """``PageRank(solver="diteration")``: ``n_iter`` sweeps over all nodes, which hand on what arrived."""

    def __init__(self, graph: Graph) -> None:
        self._adjacency = sp.csr_matrix(_ones(graph))

    def top(self, sources: NDArray[np.int32], setting: float) -> NDArray[np.int32]:
        method = PageRank(1.0 - RESTART_PROB, solver="diteration", n_iter=int(setting), tol=0.0)
        ids = [
            top_of_columns(method.fit_predict(self._adjacency, {int(source): 1.0})[:, None], WIDTH)
            for source in sources
        ]
        return np.concatenate(ids)


class TorchPpr:
    """``batched_personalized_page_rank``: power iteration on a CSR tensor, ``max_iter`` steps, 64 columns.

    Its columns have to sum to 1, else what it gives is not the answer in which a walk ends at a dangling
    node. So such nodes get a self-loop here, and their values, as a walk stays until it restarts, are cut to
    the share c. ``personalized_page_rank`` is the same and a check of those sums, which the hubs of large
    graphs fail by the rounding of float32.
    """

    def __init__(self, graph: Graph) -> None:
        for package in ("torch_ppr", "torch_max_mem"):  # they warn: not converged yet, no GPU
            logging.getLogger(package).setLevel(logging.ERROR)
        self._dangling = np.flatnonzero(graph.out_degree == 0)
        loops = (np.ones(self._dangling.size), (self._dangling, self._dangling))
        incoming = graph.transition().T + sp.csr_array(loops, shape=(graph.n_nodes,) * 2)
        incoming = incoming.tocsr().astype(np.float32)
        parts = (torch.from_numpy(part) for part in (incoming.indptr, incoming.indices, incoming.data))
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # CSR is "in beta state"
            self._incoming = torch.sparse_csr_tensor(*parts, size=incoming.shape)

    def top(self, sources: NDArray[np.int32], setting: float) -> NDArray[np.int32]:
        ranks = batched_personalized_page_rank(
            adj=self._incoming,
            indices=torch.from_numpy(sources.astype(np.int64)),
            batch_size=_BATCH,
            alpha=RESTART_PROB,
            max_iter=int(setting),
            epsilon=0.0,
            device="cpu",
        )
        values = ranks.numpy()
        values[self._dangling] *= RESTART_PROB
        return top_of_columns(values, WIDTH)


class Networkit:
    """``ApproximatePageRank``: forward push with a hash table; ``epsilon`` is its threshold.

    Its walk is lazy, it stays where it is every other step, so that its ``alpha`` is c / (2 - c). The package
    never visits a node without out-edges; a self-loop makes it do so, and loses what is handed on over it, as
    a dangling node should.
    """

    def __init__(self, graph: Graph) -> None:
        src, dst = _edges(graph)
        dangling = np.flatnonzero(graph.out_degree == 0).astype(np.int32)
        pairs = np.concatenate([src, dangling]), np.concatenate([dst, dangling])
        self._graph = networkit.GraphFromCoo(pairs, n=graph.n_nodes, directed=True)

    def top(self, sources: NDArray[np.int32], setting: float) -> NDArray[np.int32]:
        return np.stack([self._top(int(source), 1.0 / setting) for source in sources])

    def _top(self, source: int, epsilon: float) -> NDArray[np.int32]:
        # One object for one source: a second run goes on from the residuals of the first.
        method = networkit.scd.ApproximatePageRank(self._graph, RESTART_PROB / (2.0 - RESTART_PROB), epsilon)
        best = [node for node, _ in nlargest(WIDTH, method.run(source), key=_value)]
        return np.array(best + [-1] * (WIDTH - len(best)), dtype=np.int32)


class Igraph:
    """``personalized_pagerank`` by PRPACK, which solves to 1e-10 and has no knob."""

    def __init__(self, graph: Graph) -> None:
        self._graph = igraph.Graph(n=graph.n_nodes, edges=np.stack(_edges(graph), axis=1), directed=True)

    def top(self, sources: NDArray[np.int32], setting: float) -> NDArray[np.int32]:
        return np.concatenate([self._top(int(source)) for source in sources])

    def _top(self, source: int) -> NDArray[np.int32]:
        values = self._graph.personalized_pagerank(
            damping=1.0 - RESTART_PROB, reset_vertices=[source], implementation="prpack"
        )
        return top_of_columns(np.array(values, dtype=np.float32)[:, None], WIDTH)


def use_one_thread() -> None:
    """Keep the packages from starting threads."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    networkit.setNumberOfThreads(1)


def _edges(graph: Graph) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    src = np.repeat(np.arange(graph.n_nodes, dtype=np.int32), graph.out_degree)
    return src, np.array(graph.indices)


def _ones(graph: Graph) -> sp.csr_array:
    ones = np.ones(graph.n_edges, dtype=np.float32)
    return sp.csr_array((ones, np.array(graph.indices), np.array(graph.indptr)), shape=(graph.n_nodes,) * 2)


def _best(ids: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Ids of the largest values, best first."""
    if values.size > WIDTH:
        first = np.argpartition(-values, WIDTH)[:WIDTH]
        ids, values = ids[first], values[first]
    result = np.full(WIDTH, -1, dtype=np.int32)
    result[: ids.size] = ids[np.argsort(-values, kind="stable")]
    return result
