"""Job: fingerprints of all nodes, or of those asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from jobs.keys import read_ids
from jobs.logs import plain_interrupts
from jobs.progress import show_progress
from jobs.settings import Settings
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local_copy import local_store
from ppr.manifest import MANIFEST

Progress = Callable[[int, int], None]


def run(
    graph_url: str,
    out: Path,
    settings: Settings,
    *,
    sources_file: Path | None = None,
    source_kind: str | None = None,
) -> dict[str, Any]:
    """Compute a fingerprint store; continues what a stopped run left, does nothing where it is finished.

    Parameters
    ----------
    graph_url
        Path of the graph store, or a URL of fsspec, of which each machine makes one checked local copy.
    out
        Folder of the fingerprint store.
    settings
        Engine and parameters.
    sources_file
        File of source keys, one a line; None for all nodes.
    source_kind
        Kind of those keys; without a file, all nodes of this kind are sources.
    """
    started = time.monotonic()
    engine = settings.fingerprints.engine
    # The Spark engine verifies the files itself; opening first finds a missing graph before Spark starts.
    graph = Graph.open(local_store(graph_url, cache_dir=settings.spark.cache_dir), verify=engine == "local")
    for kind in settings.fingerprints.target_kinds:
        graph.kind_id(kind)  # an unknown kind is refused before an engine starts
    sources = _sources(graph, sources_file, source_kind)
    structlog.get_logger().info("fingerprints", graph=graph_url, out=str(out), engine=engine)
    kept = (out / MANIFEST).exists()  # anything else that is there is refused
    with show_progress() as update:

        def progress(done: int, total: int) -> None:
            update("fingerprints, blocks", done, total)

        if engine == "spark":
            n_sources = graph.n_nodes if sources is None else int(sources.size)
            store = _compute_spark(graph_url, out, settings, sources, n_sources, progress)
        else:
            store = _compute_local(graph, out, settings, sources, progress)
    return {
        "fingerprints": str(out),
        "checksum": store.checksum,
        "graph_checksum": store.graph_checksum,
        "parameters": store.params.to_json(),
        "sources": store.n_sources,
        "entries": int(store.indptr[-1]),
        "moves": int(store.moves.sum()),
        "kept": kept,
        "engine": engine,
        "seconds": round(time.monotonic() - started, 3),
    }


def _compute_local(
    graph: Graph, out: Path, settings: Settings, sources: npt.NDArray[np.int32] | None, progress: Progress
) -> FingerprintStore:
    from ppr.local import compute_fingerprints

    chosen = settings.fingerprints
    return compute_fingerprints(
        graph, out, chosen.params(), sources=sources, threads=chosen.threads, progress=progress
    )


def _compute_spark(
    graph_url: str,
    out: Path,
    settings: Settings,
    sources: npt.NDArray[np.int32] | None,
    n_sources: int,
    progress: Progress,
) -> FingerprintStore:
    from jobs import fairqueue
    from jobs.spark_session import session_for_a_job

    chosen, params = settings.spark, settings.fingerprints.params()
    longest = settings.fairqueue.advisory_task_run_time_s / fairqueue.ADVISORY_TASK_RUN_TIME_S
    moves = n_sources * params.n_walks * (1.0 / params.restart_prob - 1.0)
    with (
        session_for_a_job(
            master=chosen.master, remote=chosen.remote, app_name=chosen.app_name, conf=chosen.conf
        ) as session,
        plain_interrupts(),
        fairqueue.job(session, job_class="fingerprints", size=moves),
    ):
        from ppr.blocks import DEFAULT_BLOCK_MOVES
        from ppr.spark import compute_fingerprints_spark

        return compute_fingerprints_spark(
            session,
            graph_url,
            out,
            params,
            sources=sources,
            progress=progress,
            block_moves=DEFAULT_BLOCK_MOVES * longest,
            cache_dir=chosen.cache_dir,
        )


def _sources(graph: Graph, path: Path | None, kind: str | None) -> npt.NDArray[np.int32] | None:
    """Ids of the sources, ascending; None for all nodes."""
    if path is not None:
        return np.unique(read_ids(graph, path, kind))
    return None if kind is None else graph.nodes_of_kind(kind)
