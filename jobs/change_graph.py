"""Job: a graph store from another one and tables of changes to it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from jobs.progress import show_progress
from jobs.settings import GraphSettings
from ppr.changes import change_graph
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput


@dataclass(frozen=True, slots=True)
class Changes:
    """Files of changes.

    Parameters
    ----------
    added, removed
        Tables of edges; the settings say how to read them.
    removed_nodes
        Tables of nodes (key[, kind]).
    """

    added: Sequence[Path] = ()
    removed: Sequence[Path] = ()
    removed_nodes: Sequence[Path] = ()


def run(graph_path: Path, out: Path, changes: Changes, settings: GraphSettings) -> dict[str, Any]:
    """Change a graph; does nothing where the same result is there.

    Parameters
    ----------
    graph_path
        The graph before.
    out
        Folder of the new store.
    changes
        What changes.
    settings
        Columns, kinds and directions of the tables of edges.

    Returns
    -------
    dict
        The new graph, and its counts as :func:`ppr.changes.change_graph` gives them.
    """
    started = time.monotonic()
    how: dict[str, Any] = settings.model_dump(
        include={"src", "dst", "src_kind", "dst_kind", "directed", "delimiter", "header"}
    )
    weights: dict[str, Any] = {"weight": settings.weight, "weighted": settings.weighted}
    structlog.get_logger().info("change-graph", graph=str(graph_path), out=str(out))
    graph = Graph.open(graph_path)
    with show_progress() as update:
        changed = change_graph(
            graph,
            out,
            added=[EdgeInput(path, **how, **weights) for path in changes.added],
            removed=[EdgeInput(path, **how, weighted=False) for path in changes.removed],
            removed_nodes=[NodeInput(path) for path in changes.removed_nodes],
            progress=update,
        )
    manifest = changed.manifest
    _warn(manifest["counts"], settings)
    return {
        "graph": str(out),
        "checksum": changed.checksum,
        "previous": graph.checksum,
        **manifest["counts"],
        **{name: manifest[name] for name in ("nodes_per_kind", "key_type", "directed", "weighted")},
        "seconds": round(time.monotonic() - started, 3),
    }


def _warn(counts: Mapping[str, int], settings: GraphSettings) -> None:
    """Say in the log what may not be meant."""
    if rows := counts["rows_rounded"]:
        structlog.get_logger().warning(
            "weights that are no integers, or add up to 2^32 or more, are known to 2^-31 of their row's sum "
            "before the change only (build-graph reads them anew)",
            rows=rows,
        )
    if settings.directed is None and (edges := counts["opposites_left"]):
        structlog.get_logger().warning(
            "the opposite of removed edges stays (--undirected removes it too, --directed says that it "
            "is meant to stay)",
            edges=edges,
        )
