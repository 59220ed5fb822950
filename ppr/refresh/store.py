"""The store after a refresh: rows that were computed anew between rows that were kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppr.errors import StoreError
from ppr.fingerprints import FingerprintStore, Rows
from ppr.fingerprints.partial import OutputLock, partial_path, stored_plan
from ppr.fingerprints.writer import Refreshed, StoreWriter, sources_identity, store_identity
from ppr.graph import Graph
from ppr.manifest import MANIFEST, finished, full_disk_is_an_error, publish
from ppr.refresh.plan import RefreshPlan

_CHUNK_ROWS = 4096


def finished_refresh(
    out: str | Path,
    old_store: FingerprintStore,
    new_graph: Graph,
    tolerance: float,
    sources: NDArray[np.int32],
) -> FingerprintStore | None:
    """Store at ``out``, where it is what the refresh would give; None where there is nothing.

    A store of the new graph that was computed in full is that, too, whatever the tolerance.

    Parameters
    ----------
    out
        Folder of the store.
    old_store, new_graph, tolerance
        As in :func:`ppr.refresh.plan_refresh`.
    sources
        Sources of the new store, int32 [s], ascending.

    Raises
    ------
    OutputExistsError
        Something else is there.
    """
    out = Path(out)
    identity = _identity(
        old_store, new_graph, sources, None if _is_full(out) else Refreshed(old_store.checksum, tolerance)
    )
    if finished(out, identity) is None:
        return None
    # A refresh that was killed between publishing and tidying up leaves its partial folder.
    shutil.rmtree(partial_path(out), ignore_errors=True)
    return FingerprintStore.open(out, graph=new_graph, verify=False)


def refresh_fingerprints(
    plan: RefreshPlan, out: str | Path, compute: Callable[[NDArray[np.int32], Path], FingerprintStore]
) -> FingerprintStore:
    """Compute the due rows and write them with the kept ones; resumes a killed refresh.

    Parameters
    ----------
    plan
        From :func:`ppr.refresh.plan_refresh`.
    out
        Folder of the new store.
    compute
        Gives a store of the sources named, of the plan's graph and the old store's parameters, in the folder
        named: any engine, such as :func:`ppr.local.compute_fingerprints`. It is asked again after a kill, and
        then finds what it left.

    Returns
    -------
    FingerprintStore
        The finished store. Rows computed anew are, bit for bit, those of a full run on the new graph, with a
        bound of 0. Kept rows are the old ones, less entries of removed nodes, with their mass and moves as
        they were. Where the plan is to compute all, the store is the same as that of a full run.

    Raises
    ------
    OutputExistsError
        ``out`` or its partial folder is there, made otherwise, or another process is writing it.
    StoreError
        ``compute`` gave something else.
    ResourceError
        The disk is full.
    """
    out = Path(out)
    partial = partial_path(out)

    def there() -> FingerprintStore | None:
        return finished_refresh(out, plan.store, plan.graph, plan.tolerance, plan.sources)

    if (store := there()) is not None:
        return store
    if plan.full:
        return _checked(compute(plan.sources, out), plan, plan.sources)
    with full_disk_is_an_error(out):
        lock = OutputLock(partial)
        try:
            if (store := there()) is not None:  # another process finished it just now
                return store
            refreshed = Refreshed(plan.store.checksum, plan.tolerance)
            stored_plan(partial, _identity(plan.store, plan.graph, plan.sources, refreshed), {})
            due = None
            if plan.due.size:
                due = _checked(compute(plan.due, partial / "due"), plan, plan.due)
            working = partial / "store"
            shutil.rmtree(working, ignore_errors=True)
            working.mkdir()
            with StoreWriter.of_graph(working, plan.store.params, plan.graph, refreshed=refreshed) as writer:
                for rows in _rows(plan, due):
                    writer.append(rows)
                bounds = np.zeros(plan.sources.size)
                bounds[np.searchsorted(plan.sources, plan.kept)] = plan.bounds
                writer.close(bounds, plan.facts)
            publish(working, out)
            shutil.rmtree(partial, ignore_errors=True)
        finally:
            lock.release()
    return FingerprintStore.open(out, graph=plan.graph, verify=False)


def _identity(
    old: FingerprintStore, graph: Graph, sources: NDArray[np.int32], refreshed: Refreshed | None
) -> dict[str, object]:
    of_sources = sources_identity(sources, graph.n_nodes - graph.removed.size)
    return store_identity(graph.checksum, old.params, of_sources, refreshed)


def _is_full(out: Path) -> bool:
    """Whether there is a store that was not refreshed."""
    try:
        return "fingerprints" not in json.loads((out / MANIFEST).read_text(encoding="utf-8"))["parents"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _checked(store: FingerprintStore, plan: RefreshPlan, sources: NDArray[np.int32]) -> FingerprintStore:
    store.check_graph(plan.graph)
    if store.params != plan.store.params or not np.array_equal(store.sources, sources):
        raise StoreError(f"{store.path}: must have the rows that were asked for, of the old parameters")
    return store


def _rows(plan: RefreshPlan, due: FingerprintStore | None) -> Iterator[Rows]:
    """Rows of all sources, ascending, in slices as long as they come from one store."""
    gone = np.zeros(plan.graph.n_nodes, dtype=np.bool_)
    gone[plan.graph.removed] = True
    is_due = np.isin(plan.sources, plan.due, assume_unique=True)
    position = np.empty(plan.sources.size, dtype=np.int64)
    position[is_due] = np.arange(plan.due.size)
    position[~is_due] = plan.store.rows(plan.kept)
    cuts = np.flatnonzero((np.diff(position) != 1) | np.diff(is_due)) + 1
    for start in range(0, plan.sources.size, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, plan.sources.size)
        inside = cuts[np.searchsorted(cuts, start, side="right") : np.searchsorted(cuts, stop)]
        parts = []
        for first, last in pairwise([start, *inside.tolist(), stop]):
            store = due if due is not None and is_due[first] else plan.store
            rows = store.arrays.slice(int(position[first]), int(position[last - 1]) + 1)
            parts.append(rows if store is due or not plan.graph.removed.size else rows.without(gone))
        yield Rows.concat(parts)
