"""Job: fingerprints brought up to date with a changed graph; rows that hardly moved are kept."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from jobs.fingerprints import chosen_sources, compute
from jobs.progress import show_progress
from jobs.settings import Settings
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local_copy import local_store
from ppr.partitioned import Choice
from ppr.refresh import (
    RefreshPlan,
    finished_refresh,
    plan_refresh,
    refresh_fingerprints,
    refreshed_sources,
    source_kinds,
)

_BOUND = "bound, steps of the walks"


def run(
    graph: str | Path,
    out: Path,
    settings: Settings,
    *,
    old: Path,
    old_graph: str | Path,
    sources_file: Path | None = None,
    source_kind: str | None = None,
) -> dict[str, Any]:
    """Refresh a fingerprint store; continues what a stopped run left, does nothing where it is finished.

    Parameters
    ----------
    graph
        The new graph: path of its store, or a URL of fsspec.
    out
        Folder of the new fingerprint store.
    settings
        Engine and tolerance. The parameters of the rows are those of the old store.
    old
        Folder of the old fingerprint store.
    old_graph
        The graph that it was computed from: path, or a URL of fsspec.
    sources_file
        File of source keys, one a line; None for those of :func:`ppr.refresh.refreshed_sources`.
    source_kind
        Kind of those keys; without a file, all nodes of this kind are sources.
    """
    started = time.monotonic()
    log = structlog.get_logger()
    tolerance, cache_dir = settings.refresh.tolerance, settings.spark.cache_dir
    new = Graph.open(local_store(str(graph), cache_dir=cache_dir))
    store = FingerprintStore.open(old)
    chosen = settings.fingerprints.model_copy(update=asdict(store.params))
    settings = settings.model_copy(update={"fingerprints": chosen})
    before = Graph.open(local_store(str(old_graph), cache_dir=cache_dir))
    sources = chosen_sources(new, sources_file, source_kind)
    if sources is None:
        sources = refreshed_sources(store, before, new)
        if source_kinds(store, before) is None:
            _warn_of_new_nodes(before, new)
    log.info("refresh", graph=str(graph), old=str(old), out=str(out), tolerance=tolerance)
    refreshed = finished_refresh(out, store, new, tolerance, sources)
    kept, seconds = refreshed is not None, {"bound_seconds": 0.0, "walk_seconds": 0.0}
    way: list[Choice] = []
    if refreshed is None:
        with show_progress() as update:
            began, done = time.monotonic(), 1

            def progress(steps: int) -> None:
                nonlocal done
                done = steps
                update(_BOUND, done, None)

            plan = plan_refresh(
                before,
                store,
                new,
                tolerance,
                sources=sources,
                threads=chosen.threads,
                progress=progress,
            )
            update(_BOUND, done, done)
            seconds["bound_seconds"] = time.monotonic() - began
            _tell(plan)

            def of_sources(due: npt.NDArray[np.int32], folder: Path) -> FingerprintStore:
                began = time.monotonic()

                def walking(done: int, total: int) -> None:
                    pieces = "rounds" if way and way[0].partitioned else "blocks"
                    update(f"fingerprints, {pieces}", done, total)

                walked = compute(new, str(graph), folder, settings, due, walking, way.append)
                seconds["walk_seconds"] = time.monotonic() - began
                return walked

            refreshed = refresh_fingerprints(plan, out, of_sources)
    facts = _facts(refreshed)
    return {
        "fingerprints": str(out),
        "checksum": refreshed.checksum,
        "graph_checksum": refreshed.graph_checksum,
        "refreshed_from": store.checksum,
        "parameters": refreshed.params.to_json(),
        "tolerance": tolerance,
        "sources": refreshed.n_sources,
        "entries": int(refreshed.indptr[-1]),
        **facts,
        "share_recomputed": facts["recomputed"] / refreshed.n_sources,
        "kept": kept,
        "engine": chosen.engine,
        "partitioned": way[0].partitioned if way else None,
        "why": way[0].reason if way else None,
        **{name: round(spent, 3) for name, spent in seconds.items()},
        "seconds": round(time.monotonic() - started, 3),
    }


def _tell(plan: RefreshPlan) -> None:
    what = "so many rows moved that all are computed" if plan.full else "rows to compute"
    facts = {name: round(value, 4) for name, value in plan.facts.items()}
    structlog.get_logger().info(what, sources=plan.sources.size, **facts)


def _warn_of_new_nodes(before: Graph, new: Graph) -> None:
    n_new = int(np.count_nonzero(new.live >= before.n_nodes))
    if n_new:
        structlog.get_logger().warning(
            "the old fingerprints are those of some nodes, not of all of a kind: new nodes get none; "
            "--sources or --source-kind names others",
            new_nodes=n_new,
        )


def _facts(store: FingerprintStore) -> dict[str, Any]:
    """What the store says of its refresh; one that was computed in full knows of none."""
    in_full = {"rows_changed": None, "over": None, "recomputed": store.n_sources}
    facts: dict[str, Any] = store.manifest.get("refresh", in_full | {"largest_bound": 0.0, "mean_bound": 0.0})
    return facts
