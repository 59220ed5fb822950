"""A refresh whose due rows Spark computes: the store is the same, also where threads began with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from ppr.fingerprints import FingerprintStore
from ppr.local import compute_fingerprints
from ppr.refresh import plan_refresh, refresh_fingerprints
from ppr.spark import compute_fingerprints_spark
from tests.oracles.fingerprint_runs import file_hashes
from tests.oracles.refreshes import NEW, OLD, PARAMS, TOLERANCE, refresh, walk

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def test_spark_computes_the_same_due_rows(tmp_path: Path, spark: SparkSession) -> None:
    store, graph = walk(OLD)(None, tmp_path / "old"), NEW.save(tmp_path / "graph")
    plan = plan_refresh(OLD, store, graph, TOLERANCE)

    def stop_at(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    def stopped(sources: NDArray[np.int32], folder: Path) -> FingerprintStore:
        return compute_fingerprints(
            graph, folder, PARAMS, sources=sources, threads=1, block_moves=1000, progress=stop_at
        )

    def on_spark(sources: NDArray[np.int32], folder: Path) -> FingerprintStore:
        return compute_fingerprints_spark(spark, tmp_path / "graph", folder, PARAMS, sources=sources)

    with pytest.raises(KeyboardInterrupt):
        refresh_fingerprints(plan, tmp_path / "out", stopped)
    refreshed = refresh_fingerprints(plan, tmp_path / "out", on_spark)
    _, expected = refresh(OLD, store, NEW, tmp_path / "expected")
    assert file_hashes(refreshed.path) == file_hashes(expected.path)
