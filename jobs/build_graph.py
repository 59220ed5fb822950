"""Job: a graph store from tables of edges or interactions."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from jobs.logs import plain_interrupts
from jobs.progress import show_progress
from jobs.settings import GraphSettings, SparkSettings
from ppr.build import build_graph
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput, open_edges, open_nodes
from ppr.readers import Table
from ppr.request import BuildRequest


def run(
    inputs: Sequence[Path],
    out: Path,
    settings: GraphSettings,
    *,
    nodes: Path | None = None,
    previous: Path | None = None,
    spark: SparkSettings | None = None,
) -> dict[str, Any]:
    """Build a graph store; does nothing where the same one is there.

    Parameters
    ----------
    inputs
        Tables, which all go into one graph; the settings say how to read them.
    out
        Folder of the store.
    settings
        Engine, columns, kinds and policies.
    nodes
        Table of nodes that no edge may name, or None.
    previous
        Graph store whose ids go on, or None.
    spark
        The session of the Spark engine; None for the defaults.
    """
    started = time.monotonic()
    how = settings.model_dump(exclude={"engine", "self_loops", "key_type"})
    edges = [EdgeInput(path, **how) for path in inputs]
    lists = [] if nodes is None else [NodeInput(nodes)]
    log = structlog.get_logger()
    log.info("build-graph", inputs=[str(path) for path in inputs], out=str(out), engine=settings.engine)
    with tempfile.TemporaryDirectory() as staging:
        tables = [open_edges(source, str(source.data), Path(staging)).table for source in edges]
        tables += [open_nodes(source, str(source.data), Path(staging)).table for source in lists]
    described = [_describe(table) for table in tables]
    options: dict[str, Any] = {
        "nodes": lists,
        "self_loops": settings.self_loops,
        "key_type": settings.key_type,
    }
    if previous is not None:
        options["previous"] = Graph.open(previous)
    with show_progress() as update:
        if settings.engine == "spark":
            graph = _build_on_spark(edges, out, spark or SparkSettings(), progress=update, **options)
        else:
            graph = build_graph(edges, out, progress=update, **options)
    manifest = graph.manifest
    return {
        "graph": str(out),
        "checksum": graph.checksum,
        "inputs": described,
        **manifest["counts"],
        **{name: manifest[name] for name in ("nodes_per_kind", "key_type", "directed", "weighted")},
        "engine": settings.engine,
        "seconds": round(time.monotonic() - started, 3),
    }


def _build_on_spark(edges: Sequence[EdgeInput], out: Path, chosen: SparkSettings, **options: Any) -> Graph:
    from jobs import fairqueue
    from jobs.spark_session import session_for_a_job

    request = BuildRequest.of(
        edges, options["nodes"], options["self_loops"], options["key_type"], options.get("previous")
    )
    if (there := request.open_finished(out)) is not None:
        return there  # before a session starts
    paths = [Path(source.data) for source in edges]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    size = sum(file.stat().st_size for file in files)
    with (
        session_for_a_job(
            master=chosen.master, remote=chosen.remote, app_name=chosen.app_name, conf=chosen.conf
        ) as session,
        plain_interrupts(),
        fairqueue.job(session, job_class="build-graph", size=size),
    ):
        from ppr.spark import build_graph_spark

        return build_graph_spark(session, edges, out, **options)


def _describe(table: Table) -> dict[str, Any]:
    """Whether a table names its columns; warns where a header may have been taken for data."""
    unsure = next((part for part in table.parts if part.possible_header is not None), None)
    if unsure is not None:
        structlog.get_logger().warning(
            f"no header found in {unsure.name}; its first row {unsure.possible_header!r} is data "
            "(--header or --no-header settles it)"
        )
    return {"table": table.name, "header": all(part.named for part in table.parts)}
