"""Which sources a refresh computes anew, and what bound the others are kept with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppr.blocks import check_sources
from ppr.errors import ParameterError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.lineage import check_successor
from ppr.refresh.bound import change_bounds, changed_rows

MAX_TOLERANCE = 2.0
"""Nothing is further apart than this: true fingerprints have a mass of at most 1."""
FULL_FROM = 0.5
"""Share of due sources from which all are computed: at most twice the walks, and no bound is left."""
_SLACK = 2.0**-10  # of the tolerance: so many refreshes may pass before the ends of the sums count


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
        Sources that would be due.
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
        The tolerance or a source breaks its rule, or no source is left.
    StoreError
        The store was computed from another graph, or the new graph does not go on from the old one.
    """
    if not 0.0 <= tolerance < MAX_TOLERANCE:  # also refuses NaN
        raise ParameterError(f"'tolerance' must be from 0 to below {MAX_TOLERANCE:g} (got {tolerance})")
    n_threads = threads or len(os.sched_getaffinity(0))
    old_store.check_graph(old_graph)
    check_successor(old_graph, new_graph)
    wanted = refreshed_sources(old_store, new_graph) if sources is None else check_sources(new_graph, sources)
    if not wanted.size:
        raise ParameterError("'sources' must name at least one node (got none)")
    moved, named = changed_rows(old_graph, new_graph, threads=n_threads)
    rows_changed = int(np.count_nonzero(moved)) + int(np.count_nonzero(new_graph.out_degree[moved.size :]))
    known = np.isin(wanted, old_store.sources, assume_unique=True)
    bounds = np.full(wanted.size, np.inf)
    if tolerance > 0.0:
        slack, params = tolerance * _SLACK, old_store.params
        added = change_bounds(old_graph, moved, params, slack=slack, threads=n_threads, progress=progress)
        of_known = wanted[known]
        before = old_store.bounds[old_store.rows(of_known)]
        bounds[known] = _sum_rounded_up(before, added[of_known])
        if params.exclude_neighbors:
            bounds[known] = np.where(named[of_known], np.inf, bounds[known])
    is_due = bounds > tolerance
    over = int(np.count_nonzero(is_due))
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


def refreshed_sources(old_store: FingerprintStore, new_graph: Graph) -> NDArray[np.int32]:
    """Sources of a store after a refresh: all nodes where it has all, else those that are still there.

    Returns
    -------
    int32 [s], ascending
    """
    if old_store.manifest["parameters"]["sources"] == "all":
        return new_graph.live
    return np.setdiff1d(old_store.sources, new_graph.removed, assume_unique=True)


def _sum_rounded_up(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums that are not below the exact ones; exact where one of the two is 0."""
    return np.where(np.minimum(one, other) > 0.0, np.nextafter(one + other, np.inf), np.maximum(one, other))
