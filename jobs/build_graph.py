"""Job: a graph store from tables of edges or interactions."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from jobs.progress import show_progress
from jobs.settings import GraphSettings
from ppr.build import build_graph
from ppr.inputs import EdgeInput, NodeInput, open_edges, open_nodes
from ppr.readers import Table


def run(
    inputs: Sequence[Path], out: Path, settings: GraphSettings, *, nodes: Path | None = None
) -> dict[str, Any]:
    """Build a graph store; does nothing where the same one is there.

    Parameters
    ----------
    inputs
        Tables, which all go into one graph; the settings say how to read them.
    out
        Folder of the store.
    settings
        Columns, kinds and policies.
    nodes
        Table of nodes that no edge may name, or None.
    """
    started = time.monotonic()
    how = settings.model_dump(exclude={"self_loops", "key_type"})
    edges = [EdgeInput(path, **how) for path in inputs]
    lists = [] if nodes is None else [NodeInput(nodes)]
    structlog.get_logger().info("build-graph", inputs=[str(path) for path in inputs], out=str(out))
    with tempfile.TemporaryDirectory() as staging:
        tables = [open_edges(source, str(source.data), Path(staging)).table for source in edges]
        tables += [open_nodes(source, str(source.data), Path(staging)).table for source in lists]
    described = [_describe(table) for table in tables]
    with show_progress() as update:
        graph = build_graph(
            edges,
            out,
            nodes=lists,
            self_loops=settings.self_loops,
            key_type=settings.key_type,
            progress=update,
        )
    manifest = graph.manifest
    return {
        "graph": str(out),
        "checksum": graph.checksum,
        "inputs": described,
        **manifest["counts"],
        **{name: manifest[name] for name in ("nodes_per_kind", "key_type", "directed", "weighted")},
        "seconds": round(time.monotonic() - started, 3),
    }


def _describe(table: Table) -> dict[str, Any]:
    """Whether a table names its columns; warns where a header may have been taken for data."""
    unsure = next((part for part in table.parts if part.possible_header is not None), None)
    if unsure is not None:
        structlog.get_logger().warning(
            f"no header found in {unsure.name}; its first row {unsure.possible_header!r} is data "
            "(--header or --no-header settles it)"
        )
    return {"table": table.name, "header": all(part.named for part in table.parts)}
