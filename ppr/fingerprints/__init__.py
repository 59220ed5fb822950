"""Fingerprints on disk: the store, the resumable run that fills it, merging and export."""

from __future__ import annotations

from ppr.fingerprints.export import export_parquet
from ppr.fingerprints.merge import merge_stores
from ppr.fingerprints.rows import Rows
from ppr.fingerprints.run import FingerprintRun, finished_fingerprints, write_block
from ppr.fingerprints.store import FingerprintStore

__all__ = [
    "FingerprintRun",
    "FingerprintStore",
    "Rows",
    "export_parquet",
    "finished_fingerprints",
    "merge_stores",
    "write_block",
]
