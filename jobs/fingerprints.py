"""Job: fingerprints of all nodes, or of those asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from jobs.errors import ConfigurationError
from jobs.keys import read_ids
from jobs.logs import plain_interrupts
from jobs.progress import show_progress
from jobs.settings import Settings
from ppr.blocks import DEFAULT_BLOCK_MOVES, expected_moves
from ppr.errors import ResourceError
from ppr.fingerprints import FingerprintStore, finished_fingerprints
from ppr.graph import Graph
from ppr.local_copy import local_store
from ppr.machine import memory_limit_bytes
from ppr.manifest import MANIFEST
from ppr.partitioned import Choice, plan_sizes
from ppr.partitioned import Progress as Rounds

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
    # A cluster's engine verifies the files itself; opening first finds a missing graph before it starts.
    graph = Graph.open(local_store(graph_url, cache_dir=settings.spark.cache_dir), verify=engine == "local")
    for kind in settings.fingerprints.target_kinds:
        graph.kind_id(kind)  # an unknown kind is refused before an engine starts
    sources = chosen_sources(graph, sources_file, source_kind)
    structlog.get_logger().info("fingerprints", graph=graph_url, out=str(out), engine=engine)
    kept = (out / MANIFEST).exists()  # anything else that is there is refused
    with show_progress() as update:

        def progress(done: int, total: int) -> None:
            update("fingerprints", done, total)

        chosen: list[Choice] = []
        store = compute(graph, graph_url, out, settings, sources, progress, chosen.append)
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
        **({"partitioned": chosen[0].partitioned, "why": chosen[0].reason} if chosen else {}),
        "seconds": round(time.monotonic() - started, 3),
    }


def compute(
    graph: Graph,
    graph_url: str,
    out: Path,
    settings: Settings,
    sources: npt.NDArray[np.int32] | None,
    progress: Progress,
    on_choice: Callable[[Choice], None] | None = None,
) -> FingerprintStore:
    """Compute the store of some sources, ids of an opened graph, on the engine of the settings.

    ``on_choice`` is told whether the graph was cut into parts, and why.
    """

    def tell(choice: Choice) -> None:
        log = structlog.get_logger()
        facts = {}
        if choice.partitioned:
            memory, slots = choice.memory_bytes, choice.slots
            sizes = plan_sizes(graph, chosen.params(), memory_bytes=memory, slots=slots)
            facts = {"parts": sizes.n_parts, "slots": slots, "worker_memory": memory}
        log.info("walks", engine=chosen.engine, partitioned=choice.partitioned, why=choice.reason, **facts)
        if on_choice is not None:
            on_choice(choice)

    chosen = settings.fingerprints
    if chosen.engine == "dask":
        for name in ("partitioned", "worker_memory"):
            if getattr(chosen, name) not in (None, "auto", "never"):
                raise ConfigurationError(f"'fingerprints.{name}' goes with the local and the Spark engine")
    if chosen.engine != "local":
        there = finished_fingerprints(graph, out, chosen.params(), sources)
        if there is not None:
            return there  # before a cluster is asked for anything
    if chosen.engine == "dask":
        return _compute_dask(graph_url, out, settings, sources, progress)
    if chosen.engine == "spark":
        return _compute_spark(graph, graph_url, out, settings, sources, progress, tell)
    return _compute_local(graph, out, settings, sources, progress, tell)


def _compute_local(
    graph: Graph,
    out: Path,
    settings: Settings,
    sources: npt.NDArray[np.int32] | None,
    progress: Progress,
    tell: Callable[[Choice], None],
) -> FingerprintStore:
    from ppr.local import compute_fingerprints
    from ppr.partitioned import choose, compute_fingerprints_partitioned

    chosen = settings.fingerprints
    threads = chosen.threads or len(os.sched_getaffinity(0))
    choice = choose(
        graph,
        machine_bytes=memory_limit_bytes(),
        slots_per_machine=threads,
        slots=threads,
        worker_memory=chosen.worker_memory,
        partitioned=chosen.partitioned,
    )
    tell(choice)
    if not choice.partitioned:
        return compute_fingerprints(
            graph, out, chosen.params(), sources=sources, threads=threads, progress=progress
        )
    return compute_fingerprints_partitioned(
        graph,
        out,
        chosen.params(),
        sources=sources,
        threads=threads,
        memory_bytes=choice.memory_bytes,
        progress=_in_rounds(progress),
    )


def _in_rounds(progress: Progress) -> Callable[[Rounds], None]:
    """Show rounds in place of blocks."""

    def show(seen: Rounds) -> None:
        progress(seen.rounds, seen.expected_rounds)

    return show


def _compute_dask(
    graph_url: str, out: Path, settings: Settings, sources: npt.NDArray[np.int32] | None, progress: Progress
) -> FingerprintStore:
    try:
        from ppr.dask import compute_fingerprints_dask, dask_client, local_client
    except ImportError as error:
        raise ResourceError("Dask is not installed: run pip install 'fairpath[dask]'") from error
    chosen = settings.dask
    with (
        local_client(settings.fingerprints.threads)
        if chosen.scheduler is None
        else dask_client(chosen.scheduler, chosen.timeout_s)
    ) as client:
        return compute_fingerprints_dask(
            client,
            graph_url,
            out,
            settings.fingerprints.params(),
            sources=sources,
            progress=progress,
            cache_dir=settings.spark.cache_dir,
            timeout_s=chosen.timeout_s,
        )


def _compute_spark(
    graph: Graph,
    graph_url: str,
    out: Path,
    settings: Settings,
    sources: npt.NDArray[np.int32] | None,
    progress: Progress,
    tell: Callable[[Choice], None],
) -> FingerprintStore:
    from jobs import fairqueue
    from jobs.spark_session import session_for_a_job

    chosen, params = settings.spark, settings.fingerprints.params()
    longest = settings.fairqueue.advisory_task_run_time_s / fairqueue.ADVISORY_TASK_RUN_TIME_S
    n_sources = graph.live.size if sources is None else int(sources.size)
    moves = n_sources * expected_moves(params)
    with (
        session_for_a_job(
            master=chosen.master, remote=chosen.remote, app_name=chosen.app_name, conf=chosen.conf
        ) as session,
        plain_interrupts(),
        fairqueue.job(session, job_class="fingerprints", size=moves),
    ):
        from ppr.spark import (
            choose_engine,
            compute_fingerprints_partitioned_spark,
            compute_fingerprints_spark,
        )

        choice = choose_engine(
            session,
            graph,
            worker_memory=settings.fingerprints.worker_memory,
            partitioned=settings.fingerprints.partitioned,
        )
        tell(choice)
        if choice.partitioned:
            return compute_fingerprints_partitioned_spark(
                session,
                graph_url,
                out,
                params,
                choice=choice,
                sources=sources,
                progress=_in_rounds(progress),
                cache_dir=chosen.cache_dir,
            )
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


def chosen_sources(graph: Graph, path: Path | None, kind: str | None) -> npt.NDArray[np.int32] | None:
    """Ids of the sources, ascending; None for all nodes."""
    if path is not None:
        return np.unique(read_ids(graph, path, kind))
    return None if kind is None else graph.nodes_of_kind(kind)
