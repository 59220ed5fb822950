"""Refresh of fingerprints after a change of the graph, with a bound on what is kept.

Rows whose true fingerprint may have moved too far are computed anew; the others are kept, each with a bound
on how far it has moved.
"""

from __future__ import annotations

from ppr.refresh.bound import change_bounds, changed_rows
from ppr.refresh.plan import RefreshPlan, plan_refresh, refreshed_sources, source_kinds
from ppr.refresh.store import finished_refresh, refresh_fingerprints

__all__ = [
    "RefreshPlan",
    "change_bounds",
    "changed_rows",
    "finished_refresh",
    "plan_refresh",
    "refresh_fingerprints",
    "refreshed_sources",
    "source_kinds",
]
