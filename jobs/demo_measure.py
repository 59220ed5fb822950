"""Accuracy and time of the estimators on one graph, for the demo's report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from jobs.report import AccuracyCurve, CostCurve
from ppr.blocks import compute_block
from ppr.exact import exact_ppr
from ppr.graph import Graph
from ppr.metrics import l1_error, rag_at_k, sample_sources, top_k_ids
from ppr.params import FingerprintParams

WALKS = np.array([100, 300, 1000, 3000, 10_000])
_RANK = 50
_SOURCES_PER_BUCKET = 4
_REPEATS = 5  # the least of them is the time

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def measure(
    graph: Graph, params: FingerprintParams
) -> tuple[tuple[AccuracyCurve, AccuracyCurve], tuple[CostCurve, CostCurve]]:
    """Compare walk packets with independent walks and the exact solver, on some forty sources.

    Parameters
    ----------
    graph
        A graph small enough for the exact solver.
    params
        Restart probability and seed; complete rows are computed whatever else they say.

    Returns
    -------
    accuracy
        Of packets and of independent walks.
    cost
        Of packets, computing rows of ``params.top_k`` entries, and of the exact solver.
    """
    sources = sample_sources(graph, per_bucket=_SOURCES_PER_BUCKET, seed=params.seed)
    truth = exact_ppr(graph, sources, restart_prob=params.restart_prob)
    whole = FingerprintParams(restart_prob=params.restart_prob, seed=params.seed, top_k=None)
    rng = np.random.default_rng(params.seed)

    def packets(n_walks: int) -> FloatArray:
        return packet_estimates(graph, sources, replace(whole, n_walks=n_walks))

    def walks(n_walks: int) -> FloatArray:
        rows = [walk_estimate(graph, int(u), n_walks, params.restart_prob, rng) for u in sources]
        return np.stack(rows)

    accuracy = (
        _accuracy("walk packets", packets, truth, sources),
        _accuracy("independent walks", walks, truth, sources),
    )
    return accuracy, (_packet_cost(graph, sources, params), _exact_cost(graph, sources, params))


def packet_estimates(graph: Graph, sources: npt.NDArray[np.int32], params: FingerprintParams) -> FloatArray:
    """Complete rows of walk packets as a dense array, ``float64 [len(sources), n]``."""
    table = compute_block(graph, sources, params)
    estimates = np.zeros((len(sources), graph.n_nodes))
    for row, (ids, scores) in enumerate(zip(table["ids"], table["scores"], strict=True)):
        estimates[row, ids.values.to_numpy()] = scores.values.to_numpy()
    return estimates


def walk_estimate(
    graph: Graph, source: int, n_walks: int, restart_prob: float, rng: np.random.Generator
) -> FloatArray:
    """Complete-path estimate from independent walks, ``float64 [n]``: the obvious way."""
    visits = np.zeros(graph.n_nodes, dtype=np.int64)
    here = np.full(n_walks, source)
    while len(here):
        visits += np.bincount(here, minlength=graph.n_nodes)
        goes_on = (rng.random(len(here)) >= restart_prob) & (graph.out_degree[here] > 0)
        here = _step(graph, here[goes_on], rng)
    return restart_prob * visits / n_walks


def _step(graph: Graph, here: IntArray, rng: np.random.Generator) -> IntArray:
    """Next node of each walk."""
    first, degree = graph.indptr[here], graph.out_degree[here]
    uniform = rng.random(len(here))
    if graph.cumulative is None:
        return graph.indices[first + (uniform * degree).astype(np.int64)].astype(np.int64)
    low, high = first, first + degree - 1
    wanted = uniform * graph.cumulative[high]
    while np.any(low < high):  # bisection in all rows at once: the first edge whose sum exceeds the draw
        middle = (low + high) // 2
        above = graph.cumulative[middle] > wanted
        low, high = np.where(above, low, np.minimum(middle + 1, high)), np.where(above, middle, high)
    return graph.indices[low].astype(np.int64)


def _accuracy(
    label: str,
    estimate: Callable[[int], FloatArray],
    truth: FloatArray,
    sources: npt.NDArray[np.int32],
) -> AccuracyCurve:
    rag, l1 = [], []
    for n_walks in WALKS.tolist():
        found = estimate(n_walks)
        rag.append(rag_at_k(truth, top_k_ids(found, _RANK + 1), _RANK, exclude=sources))
        l1.append(l1_error(truth, found))
    return AccuracyCurve(label, WALKS, np.array(rag), np.array(l1))


def _packet_cost(graph: Graph, sources: npt.NDArray[np.int32], params: FingerprintParams) -> CostCurve:
    seconds, moves = [], []
    for n_walks in WALKS.tolist():
        chosen = replace(params, n_walks=n_walks)
        table = compute_block(graph, sources, chosen)  # compiles at the first call
        moves.append(int(np.sum(table["moves"].to_numpy())))
        seconds.append(_least_seconds(partial(compute_block, graph, sources, chosen)))
    per_source = 1e3 * np.array(seconds) / len(sources)
    return CostCurve("walk packets", WALKS, per_source, 1e9 * np.array(seconds) / np.array(moves))


def _exact_cost(graph: Graph, sources: npt.NDArray[np.int32], params: FingerprintParams) -> CostCurve:
    seconds = _least_seconds(lambda: exact_ppr(graph, sources, restart_prob=params.restart_prob, tol=1e-6))
    label = f"exact solver to 1e-6, {len(sources)} sources at once"
    none = np.empty(0)
    return CostCurve(label, none.astype(np.int64), np.array([1e3 * seconds / len(sources)]), none)


def _least_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
