"""Jobs on finished stores: validate, export, merge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppr.fingerprints import FingerprintStore, export_parquet, merge_stores
from ppr.fingerprints.writer import FORMAT as FINGERPRINTS
from ppr.graph import FORMAT as GRAPH
from ppr.graph import Graph
from ppr.manifest import MANIFEST
from router.bundle import FORMAT as ROUTER
from router.bundle import Bundle


def validate(path: Path, graph_path: Path | None) -> dict[str, Any]:
    """Check every file and every invariant of a graph store, a fingerprint store or a router's bundle.

    Raises
    ------
    MissingDataError
        There is no store.
    StoreError
        The store is damaged, or does not belong to the graph.
    BundleError
        The bundle is damaged.
    """
    graph = None if graph_path is None else Graph.open(graph_path)
    found = _format(path)
    if found == ROUTER:
        return {"store": str(path), "format": ROUTER, "checksum": Bundle.open(path).checksum, "valid": True}
    if found == GRAPH:
        opened = Graph.open(path)
        return {"store": str(path), "format": GRAPH, "checksum": opened.checksum, "valid": True}
    store = FingerprintStore.open(path, graph=graph)
    store.validate(graph)
    return {"store": str(path), "format": FINGERPRINTS, "checksum": store.checksum, "valid": True}


def export(graph_path: Path, fingerprints: Path, out: Path) -> dict[str, Any]:
    """Write a fingerprint store as one Parquet file with the original keys; the same again does nothing."""
    graph = Graph.open(graph_path)
    store = FingerprintStore.open(fingerprints, graph=graph)
    export_parquet(store, graph, out)
    return {"out": str(out), "rows": store.n_sources}


def merge(paths: Sequence[Path], out: Path) -> dict[str, Any]:
    """Merge fingerprint stores of disjoint sources."""
    store = merge_stores(paths, out)
    return {"fingerprints": str(out), "checksum": store.checksum, "sources": store.n_sources}


def _format(path: Path) -> str | None:
    """Format that a store's manifest names; None where there is no readable manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest.get("format") if isinstance(manifest, dict) else None
