"""Fingerprint tables and stores made without the package's walk kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ppr.blocks import FINGERPRINT_SCHEMA
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.graph import Graph
from ppr.params import FingerprintParams
from tests.oracles.dense import transition


def walk_estimates(
    graph: Graph, sources: NDArray[np.integer], *, restart_prob: float, n_walks: int, seed: int
) -> NDArray[np.float64]:
    """Complete-path Monte Carlo with one independent walker per row: c visits / R, float64 [s, n]."""
    rng = np.random.default_rng(seed)
    cumulative = np.cumsum(transition(graph), axis=1)
    visits = np.zeros((len(sources), graph.n_nodes))
    row = np.repeat(np.arange(len(sources)), n_walks)
    node = np.repeat(np.asarray(sources), n_walks)
    while node.size:
        np.add.at(visits, (row, node), 1.0)
        moves_on = (rng.random(node.size) >= restart_prob) & (cumulative[node, -1] > 0)
        row, node = row[moves_on], node[moves_on]
        draw = rng.random(node.size) * cumulative[node, -1]
        node = (cumulative[node] <= draw[:, None]).sum(axis=1)
    return restart_prob * visits / n_walks


def table_of(
    sources: NDArray[np.integer], estimates: NDArray[np.float64], top_k: int | None = None
) -> pa.Table:
    """Table of fingerprint rows from estimates [s, n]."""
    ids, scores = [], []
    for estimate in estimates:
        values = estimate.astype(np.float32)
        best = np.lexsort((np.arange(values.size), -values))[:top_k]
        best = best[values[best] > 0].astype(np.int32)
        ids.append(best)
        scores.append(values[best])
    mass = np.ascontiguousarray(estimates).sum(axis=1)
    moves = np.asarray(sources) + 1  # made up
    columns = [np.asarray(sources, np.int32), ids, scores, mass, moves]
    return pa.table(
        [
            pa.array(column, type=field.type)
            for column, field in zip(columns, FINGERPRINT_SCHEMA, strict=True)
        ],
        schema=FINGERPRINT_SCHEMA,
    )


def write_store(
    graph: Graph,
    out: Path,
    estimates: NDArray[np.float64],
    params: FingerprintParams,
    sources: NDArray[np.integer] | None = None,
) -> FingerprintStore:
    """Store of the given estimates, one row of them per source."""
    nodes = np.arange(graph.n_nodes) if sources is None else sources
    run = FingerprintRun.begin(graph, out, params, lambda: [nodes], 1)
    assert run is not None
    with run:
        run.write_wave(0, [table_of(nodes, estimates, params.top_k)])
        return run.finish()
