"""A refresh with known graphs, for the tests of refreshes: one new node, one removed, two changed edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppr.blocks import compute_block
from ppr.fingerprints import FingerprintStore, Rows
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.refresh import RefreshPlan, plan_refresh, refresh_fingerprints
from tests.oracles.changing_graphs import Dense, changed, random_dense

PARAMS = FingerprintParams(n_walks=200, top_k=15, seed=3)
TOLERANCE = 0.3
N_NODES = 150


def next_graph(seed: int, before: Dense, n_changes: int = 2) -> Dense:
    rng = np.random.default_rng(seed)
    return changed(rng, before, kind="undirected", weighted=True, n_changes=n_changes)


def _grown_and_shrunk(before: Dense) -> Dense:
    graphs = (next_graph(seed, before) for seed in range(1000))
    return next(one for one in graphs if one.removed and one.weights[N_NODES:].any())


FIRST = random_dense(np.random.default_rng(0), N_NODES, kind="undirected", weighted=True)
SECOND = _grown_and_shrunk(FIRST)
OLD, NEW = FIRST.graph(), SECOND.graph()

Row = tuple[bytes, bytes, float, int]


def walk(graph: Graph, params: FingerprintParams = PARAMS) -> Callable[[Any, Path], FingerprintStore]:
    """Callback that computes sources on the local engine, in several blocks."""

    def compute(sources: NDArray[np.int32] | None, folder: Path) -> FingerprintStore:
        return compute_fingerprints(graph, folder, params, sources=sources, threads=1, block_moves=20_000)

    return compute


def refresh(
    old: Graph, store: FingerprintStore, new: Graph, out: Path, tolerance: float = TOLERANCE
) -> tuple[RefreshPlan, FingerprintStore]:
    plan = plan_refresh(old, store, new, tolerance, threads=1)
    return plan, refresh_fingerprints(plan, out, walk(new, store.params))


def row(store: FingerprintStore, source: int) -> Row:
    ids, scores, mass = store.row(source)
    return ids.tobytes(), scores.tobytes(), mass, int(store.moves[store.rows([source])[0]])


def rows_of(graph: Graph, params: FingerprintParams = PARAMS) -> dict[int, Row]:
    """All rows as a full run computes them."""
    rows = Rows.from_arrow(compute_block(graph, graph.live, params))
    parts = [rows.slice(i, i + 1) for i in range(len(rows))]
    return {
        int(one.sources[0]): (one.ids.tobytes(), one.scores.tobytes(), float(one.mass[0]), int(one.moves[0]))
        for one in parts
    }


def check_rows(plan: RefreshPlan, refreshed: FingerprintStore, before: FingerprintStore) -> None:
    """Recomputed rows are those of a full run, kept rows the old ones less removed nodes."""
    removed, full = plan.graph.removed, rows_of(plan.graph, before.params)
    for source in plan.due.tolist():
        assert row(refreshed, source) == full[source]
    for source in plan.kept.tolist():
        ids, scores, mass = before.row(source)
        stays = ~np.isin(ids, removed)
        moves = int(before.moves[before.rows([source])[0]])
        assert row(refreshed, source) == (ids[stays].tobytes(), scores[stays].tobytes(), mass, moves)
    bounds = refreshed.bounds[refreshed.rows(plan.kept)]
    assert bounds.tobytes() == plan.bounds.tobytes()
    assert not refreshed.bounds[refreshed.rows(plan.due)].any()
