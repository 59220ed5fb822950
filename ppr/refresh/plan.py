"""Which sources a refresh computes anew, and what bound the others are kept with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppr.blocks import check_sources
from ppr.errors import ParameterError, StoreError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.lineage import check_successor
from ppr.refresh.bound import change_bounds, changed_rows

MAX_TOLERANCE = 2.0
"""Nothing is further apart than this: true fingerprints have a mass of at most 1."""
FULL_FROM = 0.5
"""Share of due sources from which all are computed: at most twice the walks, and no bound is left."""
_SLACK = 2.0**-10  # of the tolerance: so many refreshes may pass before the ends of the sums count
_LEAST_SLACK = 2.0**-60  # of the smallest tolerances this part would be 0, and the sum without end


@dataclass(frozen=True, slots=True, eq=False)
class RefreshPlan:
    """What a refresh will do.

    Attributes
    ----------
    graph
        The new graph.
    store
        The old store.
    tolerance
        Largest bound that a kept row may have.
    sources
        Sources of the new store, int32 [s], ascending.
    due
        Those to compute, int32 [d], ascending; all of them where more than :data:`FULL_FROM` would be.
    kept
        The others, int32 [s - d], ascending.
    bounds
        Bound of each kept row, float64 [s - d]; see :attr:`ppr.fingerprints.FingerprintStore.bounds`.
    rows_changed
        Rows of transition probabilities that changed between the graphs, new nodes included.
    over
        Sources that would be due; where all are computed, at least so many.
    """

    graph: Graph
    store: FingerprintStore
    tolerance: float
    sources: NDArray[np.int32]
    due: NDArray[np.int32]
    kept: NDArray[np.int32]
    bounds: NDArray[np.float64]
    rows_changed: int
    over: int

    @property
    def full(self) -> bool:
        """Whether all rows are computed, so that the result is a store without bounds."""
        return self.kept.size == 0

    @property
    def facts(self) -> dict[str, Any]:
        """What there is to tell; the mean of the bounds is that over all rows."""
        return {
            "rows_changed": self.rows_changed,
            "over": self.over,
            "recomputed": self.due.size,
            "largest_bound": float(self.bounds.max(initial=0.0)),
            "mean_bound": float(self.bounds.sum() / self.sources.size),
        }


def plan_refresh(
    old_graph: Graph,
    old_store: FingerprintStore,
    new_graph: Graph,
    tolerance: float,
    *,
    sources: NDArray[np.int32] | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> RefreshPlan:
    """Find out which sources are due.

    A source is due where its bound, added to the one that its row has already, exceeds the tolerance; where
    it has no row; and, where rows leave out the source's neighbours, where these are others than before.

    Parameters
    ----------
    old_graph
        The graph that ``old_store`` was computed from, or refreshed for.
    old_store
        Fingerprints; theirs are the parameters of the new rows.
    new_graph
        A later graph of the same lineage.
    tolerance
        From 0, with which all sources are due, to below 2.
    sources
        Sources of the new store, int32 ids in any order; by default those of :func:`refreshed_sources`.
    threads
        Threads; by default one per processor that this process may use. They change nothing in the result.
    progress
        Called with the steps of the bound that are done.

    Raises
    ------
    ParameterError
        The tolerance or a source breaks its rule.
    StoreError
        The store was computed from another graph, the new graph does not go on from the old one or has no
        nodes, or it has none of the old store's sources.
    """
    if not 0.0 <= tolerance < MAX_TOLERANCE:  # also refuses NaN
        raise ParameterError(f"'tolerance' must be from 0 to below {MAX_TOLERANCE:g} (got {tolerance})")
    n_threads = threads or len(os.sched_getaffinity(0))
    old_store.check_graph(old_graph)
    check_successor(old_graph, new_graph)
    if sources is None:
        sources = refreshed_sources(old_store, old_graph, new_graph)
    wanted = check_sources(new_graph, sources)
    if not wanted.size:
        raise ParameterError("'sources' must name at least one node (got none)")
    moved, named = changed_rows(old_graph, new_graph, threads=n_threads)
    rows_changed = int(np.count_nonzero(moved)) + int(np.count_nonzero(new_graph.out_degree[moved.size :]))
    params, bounds = old_store.params, np.full(wanted.size, np.inf)
    known = np.isin(wanted, old_store.sources, assume_unique=True)
    if params.exclude_neighbors:
        known[known] = ~named[wanted[known]]
    of_known = wanted[known]
    before, over = old_store.bounds[old_store.rows(of_known)], wanted.size

    def most_are_over(added: NDArray[np.float64]) -> bool:
        nonlocal over
        bounds[known] = _sum_rounded_up(before, added[of_known])
        over = int(np.count_nonzero(bounds > tolerance))
        return over > FULL_FROM * wanted.size

    if tolerance > 0.0:
        over, slack = 0, max(tolerance * _SLACK, _LEAST_SLACK)
        added = change_bounds(
            old_graph,
            moved,
            params,
            slack=slack,
            threads=n_threads,
            progress=progress,
            enough=most_are_over,
        )
        if over <= FULL_FROM * wanted.size:
            most_are_over(added)
    is_due = bounds > tolerance
    if over > FULL_FROM * wanted.size:
        is_due[:] = True
    return RefreshPlan(
        graph=new_graph,
        store=old_store,
        tolerance=float(tolerance),
        sources=wanted,
        due=wanted[is_due],
        kept=wanted[~is_due],
        bounds=bounds[~is_due],
        rows_changed=rows_changed,
        over=over,
    )


def source_kinds(store: FingerprintStore, graph: Graph) -> tuple[str, ...] | None:
    """Kinds of which a store's sources are all nodes that the graph has; None where they are others.

    Only the sources count, not how they were asked for: those of a list that names all nodes of a kind are
    all nodes of this kind.

    Raises
    ------
    StoreError
        The store was computed from another graph.
    """
    store.check_graph(graph)
    kinds = tuple(graph.kinds[kind] for kind in np.unique(graph.kind_ids[store.sources]))
    return kinds if np.array_equal(np.flatnonzero(graph.of_kinds(kinds)), store.sources) else None


def refreshed_sources(old_store: FingerprintStore, old_graph: Graph, new_graph: Graph) -> NDArray[np.int32]:
    """Sources of a store after a refresh.

    All nodes where the old store has all of the old graph's; all nodes of some kinds where it has these
    (:func:`source_kinds`), new ones included; else those of its sources that are still there. What the old
    store has is judged by the old graph, so that a removal does not make all nodes out of some. But once a
    node is removed it counts for nothing: a list that lacked only this one has all nodes at the next refresh.

    Returns
    -------
    int32 [s], ascending

    Raises
    ------
    StoreError
        The store was computed from another graph, or none of its sources is left in the new one.
    """
    kinds = source_kinds(old_store, old_graph)
    if kinds is None:
        sources = np.setdiff1d(old_store.sources, new_graph.removed, assume_unique=True)
    elif old_store.n_sources == old_graph.live.size:
        sources = new_graph.live
    else:
        of_kinds = np.isin(new_graph.kind_ids, [old_graph.kind_id(kind) for kind in kinds])
        of_kinds[new_graph.removed] = False
        sources = np.flatnonzero(of_kinds).astype(np.int32)
    if not sources.size:
        lacks = f"none of the sources of {old_store.path}" if new_graph.live.size else "no nodes"
        raise StoreError(f"{new_graph.path or 'the new graph'}: has {lacks}")
    return sources


def _sum_rounded_up(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums that are not below the exact ones; exact where one of the two is 0."""
    return np.where(np.minimum(one, other) > 0.0, np.nextafter(one + other, np.inf), np.maximum(one, other))
