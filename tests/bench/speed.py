"""Speed of the kernel on one core against bare memory gathers, and of two threads against one.

A move is one edge handed mass; its time is that of whole blocks, ranking and table included. The bare loop
does the memory accesses of a move and nothing else: for nodes as walkers meet them (targets of random edges)
it reads the bounds of the row, draws an edge and fetches its target, from the same memory-mapped arrays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from accuracy import ranked_ids
from datasets import RESTART_PROB, rmat
from harness import Figure, at_least, at_most, check, note, run_alone
from numba import njit
from numpy.typing import NDArray

from ppr.blocks import compute_block
from ppr.exact import exact_ppr
from ppr.graph import Graph
from ppr.kernels.rng import below_low, draw, stream_key
from ppr.metrics import rag_at_k
from ppr.params import FingerprintParams

PARAMS = FingerprintParams(restart_prob=RESTART_PROB, n_walks=3000)
N_SOURCES = 2000  # per block
N_GATHERS = 10_000_000
N_CHECKED = 4
TURNS = 7
KEY = stream_key(0, 0, 0)


@njit(cache=True, error_model="numpy", nogil=True)
def gather(indptr, indices, nodes, key):
    """Sum of the targets that one move from each node meets."""
    total = np.int64(0)
    for i in range(nodes.size):
        node = np.uint64(nodes[i])
        begin = indptr[node]
        degree = indptr[node + np.uint64(1)] - begin
        total += indices[np.uint64(begin + below_low(draw(key, i), degree))]
    return total


def measure() -> list[Figure]:
    """Measure a graph that nearly fits the cache and one that does not."""
    graphs = [
        ("R-MAT, 2M edges", lambda: rmat(17, 2_000_000)),
        ("R-MAT, 33M edges", lambda: rmat(21, 33_000_000)),
    ]
    return [figure for name, graph in graphs for figure in _figures(name, graph())]


def _figures(name: str, graph: Graph) -> Iterator[Figure]:
    rng = np.random.default_rng(0)
    degree = graph.out_degree
    blocks = rng.choice(np.flatnonzero(degree), (2, N_SOURCES), replace=False).astype(np.int32)
    met = graph.indices[rng.integers(graph.n_edges, size=3 * N_GATHERS)]
    nodes = met[degree[met] > 0][:N_GATHERS]
    _check_gathers(graph, nodes[:1000])
    _check_rows(graph, blocks[0, :N_CHECKED])
    moves = [int(compute_block(graph, block, PARAMS)["moves"].to_numpy().sum()) for block in blocks]

    def one_thread() -> None:
        compute_block(graph, blocks[0], PARAMS)

    def two_threads() -> None:
        for _ in pool.map(lambda block: compute_block(graph, block, PARAMS), blocks):
            pass

    def bare_gathers() -> None:
        gather(graph.indptr, graph.indices, nodes, KEY)

    with ThreadPoolExecutor(2) as pool:
        turns = [
            (
                _timed(time.thread_time, bare_gathers),
                _timed(time.thread_time, one_thread),
                _timed(time.perf_counter, one_thread),
                _timed(time.perf_counter, two_threads),
            )
            for _ in range(TURNS)
        ]
    gather_s, block_s, one_s, two_s = np.min(turns, axis=0)
    move_ns, gather_ns = 1e9 * block_s / moves[0], 1e9 * gather_s / nodes.size
    yield at_most(f"{name}: time per move against a bare gather", move_ns / gather_ns, 2.0, "times")
    yield note(f"{name}: time per move", move_ns, "ns")
    yield note(f"{name}: time per bare gather", gather_ns, "ns")
    speedup = (sum(moves) / two_s) / (moves[0] / one_s)
    yield at_least(f"{name}: moves per second, two threads against one", speedup, 1.7, "times")


def _timed(clock: Callable[[], float], work: Callable[[], None]) -> float:
    started = clock()
    work()
    return clock() - started


def _check_gathers(graph: Graph, nodes: NDArray[np.int32]) -> None:
    """Compare the loop with single draws."""
    begin, degree = graph.indptr[nodes], graph.out_degree[nodes]
    drawn = [below_low(draw(KEY, i), degree[i]) for i in range(len(nodes))]
    expected = graph.indices[begin + drawn].sum(dtype=np.int64)
    check(gather(graph.indptr, graph.indices, nodes, KEY) == expected, "bare gathers")


def _check_rows(graph: Graph, sources: NDArray[np.int32]) -> None:
    """Compare rows with exact answers, coarsely: on a large graph these take their time."""
    truth = exact_ppr(graph, sources, restart_prob=RESTART_PROB, tol=1e-3)
    ids = ranked_ids(compute_block(graph, sources, PARAMS), 51)
    rag = float(rag_at_k(truth, ids, 50, exclude=sources).mean())
    check(rag > 0.9, f"rows with RAG@50 {rag:.3f}")


if __name__ == "__main__":
    run_alone("speed", measure)
