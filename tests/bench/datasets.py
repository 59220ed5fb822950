"""Graphs that the benchmarks measure on, with exact answers; built once, kept below build/bench/data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from harness import RESULTS, ROOT, check
from numpy.typing import NDArray
from rmat import write_rmat

from ppr.build import build_graph
from ppr.exact import exact_ppr
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.metrics import sample_sources
from router.loaders import read_adjacency_lists, read_square_adjacency

DATA = RESULTS / "data"
SHARED = ROOT.parent / "shared" / "data"
RESTART_PROB = 0.15
GOWALLA_USERS = 29_858


def shared_file(name: str) -> Path:
    """Path of a real data set, which lies beside the repository; the benchmark ends where it is absent."""
    path = SHARED / name
    if not path.exists():
        raise SystemExit(f"{path}: the real data sets are not there")
    return path


def wiki_vote() -> Graph:
    """SNAP wiki-Vote: directed, 7,115 nodes, 104k edges, 1,005 dangling nodes."""
    source = EdgeInput(shared_file("graphs/wiki-Vote.txt.gz"), directed=True)
    return _kept("wiki-vote", lambda folder: build_graph(source, folder))


def ego_twitter() -> Graph:
    """SNAP ego-Twitter: undirected, 81,306 nodes, 2.7M stored edges."""
    source = EdgeInput(shared_file("graphs/ego-twitter.tsv.gz"), directed=False)
    return _kept("ego-twitter", lambda folder: build_graph(source, folder))


def weighted_ego_twitter() -> Graph:
    """Weight the edges of ego-Twitter, log-normal with a standard deviation of 1 in the logarithm."""

    def build(folder: Path) -> None:
        graph = ego_twitter()
        src = np.repeat(np.arange(graph.n_nodes, dtype=np.int32), graph.out_degree)
        once = src < graph.indices
        weight = np.random.default_rng(0).lognormal(size=np.count_nonzero(once))
        table = pa.table({"src": src[once], "dst": graph.indices[once], "weight": weight})
        build_graph(EdgeInput(table, directed=False), folder)

    return _kept("weighted-ego-twitter", build)


def rmat(scale: int, n_edges: int) -> Graph:
    """R-MAT graph of up to ``2**scale`` nodes: the distinct ones of ``n_edges`` edges, directed."""

    def build(folder: Path) -> None:
        drawn = folder.with_suffix(".parquet")
        write_rmat(drawn, scale, n_edges, seed=0)
        table = pq.read_table(drawn)
        src, dst = (table[name].to_numpy().astype(np.int64) for name in ("src", "dst"))
        pairs = np.unique(src << 32 | dst)
        distinct = pa.table({"src": pairs >> 32, "dst": pairs & 0xFFFFFFFF})
        build_graph(EdgeInput(distinct, directed=True), folder)
        drawn.unlink()

    return _kept(f"rmat-{scale}-{n_edges}", build)


def gowalla() -> tuple[sp.csr_array, sp.csr_array]:
    """LightGCN's split of Gowalla: users × items of training and test, float32."""
    train = read_square_adjacency(shared_file("gowalla/s_adj_mat.npz"), GOWALLA_USERS)
    table = read_adjacency_lists(shared_file("gowalla/test.txt.gz"))
    check((train.nnz, len(table)) == (810_128, 217_242), "interactions of Gowalla's split")
    ones = np.ones(len(table), dtype=np.float32)
    return train, sp.csr_array((ones, (table.users, table.items)), shape=train.shape)


def gowalla_graph() -> Graph:
    """Gowalla's training split as an undirected graph of users and items, 70,839 nodes, 1.6M stored edges."""

    def build(folder: Path) -> None:
        train = gowalla()[0].tocoo()
        table = pa.table({"src": train.coords[0], "dst": train.coords[1] + GOWALLA_USERS})
        build_graph(EdgeInput(table, directed=False), folder)

    return _kept("gowalla", build)


def _kept(name: str, build: Callable[[Path], object]) -> Graph:
    folder = DATA / name
    if not folder.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        build(folder)
    return Graph.open(folder)


def protocol(graph: Graph) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Give the 100 sources of the accuracy protocol and their truth to 1e-10, float64 [100, n]."""
    sources = sample_sources(graph)
    path = DATA / f"truth-{graph.checksum[:16]}.npy"
    if not path.exists():
        working = path.with_suffix(f".{os.getpid()}.npy")
        np.save(working, exact_ppr(graph, sources, restart_prob=RESTART_PROB, tol=1e-10))
        working.rename(path)
    return sources, np.load(path, mmap_mode="r", allow_pickle=False)
