"""Refresh after a night's changes against a full run, and how near the bounds of kept rows are to the truth.

A night brings three new edges each for 1 % of the users (ego-Twitter: of the nodes). They lead to the end of
an edge drawn at random, so that who has many neighbours gets more, as in the data; where they are drawn
evenly, more rows are over the tolerance, and that share is told, too. Both ways the jobs are measured as a
user starts them: opening and checking their inputs, the bound, walks, and writing the store. Time is that of
the process on all its cores, which other processes on the machine disturb less than wall time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ego_twitter, gowalla
from harness import RESULTS, Figure, at_most, check, note, run_alone
from numpy.typing import NDArray

from jobs.fingerprints import run as run_fingerprints
from jobs.logs import configure_logs
from jobs.refresh import run as run_refresh
from jobs.settings import Settings
from ppr.blocks import compile_kernels
from ppr.build import build_graph
from ppr.changes import change_graph
from ppr.exact import exact_ppr
from ppr.fingerprints import FingerprintStore
from ppr.fingerprints.writer import ARRAYS
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.refresh import change_bounds, changed_rows
from ppr.refresh.bound import walked_restart_prob

SETTINGS = Settings()
NEW_EDGES = 3
SHARE = 0.01
N_SAMPLED = 40  # of the kept rows, half of them those with the largest bounds
TOL = 1e-6  # of the exact solver
TURNS = 2


@dataclass(frozen=True)
class Edges:
    """The edges of an undirected graph, each once.

    Attributes
    ----------
    src, dst
        Keys of their ends, int64 [edges].
    sources, targets
        Keys of those that may get new edges, and of those that these may lead to, int64.
    names
        Columns of an edge table; of users and items where the two ends are of different kinds.
    """

    src: NDArray[np.int64]
    dst: NDArray[np.int64]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    names: tuple[str, str]

    def table(self, src: NDArray[np.int64], dst: NDArray[np.int64]) -> EdgeInput:
        """Edges as the builder takes them."""
        return EdgeInput(pa.table([src, dst], names=self.names), directed=False)

    def night(self, rng: np.random.Generator, *, evenly: bool) -> EdgeInput:
        """Draw three new edges each for 1 % of the sources."""
        chosen = rng.choice(self.sources, round(SHARE * self.sources.size), replace=False)
        src = np.repeat(chosen, NEW_EDGES)
        return self._new(src, rng.choice(self.targets if evenly else self._ends(), src.size))

    def upheaval(self, rng: np.random.Generator) -> tuple[EdgeInput, EdgeInput]:
        """Draw edges to add and to remove: 1 % of all, half of them each."""
        count = round(SHARE * self.src.size / 2)
        gone = rng.choice(self.src.size, count, replace=False)
        added = self._new(rng.choice(self.sources, count), rng.choice(self.targets, count))
        return added, self.table(self.src[gone], self.dst[gone])

    def _ends(self) -> NDArray[np.int64]:
        """Targets, each as often as it has edges."""
        return self.dst if self._two_kinds else np.concatenate([self.src, self.dst])

    @property
    def _two_kinds(self) -> bool:
        return "user" in self.names

    def _new(self, src: NDArray[np.int64], dst: NDArray[np.int64]) -> EdgeInput:
        """Those of the pairs that are no edges yet, each once."""
        if not self._two_kinds:
            src, dst = np.minimum(src, dst), np.maximum(src, dst)
            src, dst = src[src < dst], dst[src < dst]
        pairs = np.setdiff1d(src << 32 | dst, self.src << 32 | self.dst)
        return self.table(pairs >> 32, pairs & 0xFFFFFFFF)


def _gowalla() -> Edges:
    users, items = (ends.astype(np.int64) for ends in gowalla()[0].nonzero())
    return Edges(users, items, np.unique(users), np.unique(items), ("user", "item"))


def _ego_twitter() -> Edges:
    graph = ego_twitter()
    src, dst = np.repeat(np.arange(graph.n_nodes), graph.out_degree), graph.indices.astype(np.int64)
    nodes = np.arange(graph.n_nodes)
    return Edges(src[src < dst], dst[src < dst], nodes, nodes, ("src", "dst"))


def measure() -> list[Figure]:
    """Measure both graphs."""
    configure_logs("warning", "text")
    compile_kernels()
    figures = []
    for name, edges in (("Gowalla", _gowalla), ("ego-Twitter", _ego_twitter)):
        with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
            figures += list(_figures(name, edges(), Path(folder)))
    return figures


def _figures(name: str, edges: Edges, folder: Path) -> Iterator[Figure]:
    old = build_graph(edges.table(edges.src, edges.dst), folder / "old")
    new = change_graph(old, folder / "new", added=edges.night(np.random.default_rng(0), evenly=False))
    store = _full(old, folder / "old-rows")
    assert store.path is not None
    fulls, refreshes = [], []
    for turn in range(TURNS):
        fulls.append(_timed(lambda turn=turn: _full(new, folder / f"full-{turn}")))
        refreshes.append(_timed(lambda turn=turn: _refresh(old, store, new, folder / f"refreshed-{turn}")))
    result = min((result for _, _, result in refreshes), key=lambda result: result["seconds"])
    refreshed = FingerprintStore.open(folder / "refreshed-0", graph=new)
    _check_rows(refreshed, store, FingerprintStore.open(folder / "full-0"))
    fastest_full, fastest = min(fulls, key=lambda one: one[0]), min(refreshes, key=lambda one: one[0])
    yield at_most(f"{name}, a night: refresh, share of a full run's time", fastest[0] / fastest_full[0], 0.25)
    yield note(f"{name}, a night: refresh, wall time", fastest[1], "s")
    yield note(f"{name}, a night: of that, the bound", result["bound_seconds"], "s")
    yield note(f"{name}, a night: of that, walks", result["walk_seconds"], "s")
    yield note(f"{name}, a night: full run, wall time", fastest_full[1], "s")
    yield note(f"{name}, a night: rows of transitions changed", result["rows_changed"])
    yield note(f"{name}, a night: share of sources over the tolerance", result["share_recomputed"])
    yield at_most(f"{name}, a night: largest bound left", result["largest_bound"], SETTINGS.refresh.tolerance)
    yield note(f"{name}, a night: mean bound left", result["mean_bound"])
    yield from _truth(name, old, new, refreshed)
    evenly = change_graph(old, folder / "even", added=edges.night(np.random.default_rng(0), evenly=True))
    yield note(
        f"{name}, a night, edges drawn evenly: share over the tolerance", _share_over(old, store, evenly)
    )
    added, removed = edges.upheaval(np.random.default_rng(0))
    changed = change_graph(old, folder / "changed", added=added, removed=removed)
    yield note(
        f"{name}, 1 % of all edges changed: share over the tolerance", _share_over(old, store, changed)
    )


def _full(graph: Graph, out: Path) -> FingerprintStore:
    run_fingerprints(str(graph.path), out, SETTINGS)
    return FingerprintStore.open(out, verify=False)


def _refresh(old: Graph, store: FingerprintStore, new: Graph, out: Path) -> dict[str, Any]:
    assert old.path is not None
    assert new.path is not None
    return run_refresh(new.path, out, SETTINGS, old=store.path, old_graph=old.path)


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU time of the process, wall time, and what the work gives."""
    started, began = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - started, time.perf_counter() - began, result


def _check_rows(refreshed: FingerprintStore, before: FingerprintStore, full: FingerprintStore) -> None:
    """Rows without a bound are those of the full run, the others the old ones."""
    kept = refreshed.bounds > 0.0
    check(0 < np.count_nonzero(~kept) < 0.5 * kept.size, "rows computed anew")
    for sources, origin in ((refreshed.sources[kept], before), (refreshed.sources[~kept], full)):
        ours, theirs = (store.arrays.take(store.rows(sources)) for store in (refreshed, origin))
        for name in ARRAYS:
            check(getattr(ours, name).tobytes() == getattr(theirs, name).tobytes(), f"'{name}' of rows")


def _truth(name: str, old: Graph, new: Graph, refreshed: FingerprintStore) -> Iterator[Figure]:
    """How far the true fingerprints of kept rows moved."""
    kept = np.flatnonzero(refreshed.bounds)
    largest = kept[np.argsort(refreshed.bounds[kept])[-N_SAMPLED // 2 :]]
    others = np.random.default_rng(0).choice(np.setdiff1d(kept, largest), N_SAMPLED // 2, replace=False)
    sampled = np.concatenate([largest, others])
    stop = walked_restart_prob(refreshed.params)
    before, after = (
        exact_ppr(graph, refreshed.sources[sampled], restart_prob=stop, tol=TOL) for graph in (old, new)
    )
    after[:, : old.n_nodes] -= before
    moved = np.abs(after).sum(axis=1)
    bounds = refreshed.bounds[sampled]
    what = f"{name}, a night: {N_SAMPLED} kept rows, true change over bound"
    yield at_most(f"{what}, largest", float((moved / bounds).max()), 1 + 2 * TOL / float(bounds.min()))
    yield note(f"{what}, mean", float((moved / bounds).mean()))


def _share_over(old: Graph, store: FingerprintStore, new: Graph) -> float:
    """What a plan counts, to the end."""
    tolerance = SETTINGS.refresh.tolerance
    moved, _ = changed_rows(old, new)
    bounds = change_bounds(old, moved, store.params, slack=tolerance / 1024)
    return float((bounds[store.sources] > tolerance).mean())


if __name__ == "__main__":
    run_alone("refresh", measure)
