"""Spark engine: waves of source blocks, one Spark job each, written as Parquet by the workers.

A task holds one block; :mod:`ppr.workers` says what its worker does with it. No row passes through the
driver. Only the DataFrame API is used, so the same code runs in a classic session and through Spark Connect.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.functions import col, monotonically_increasing_id

from ppr.blocks import DEFAULT_BLOCK_MOVES, plan_blocks
from ppr.errors import ParameterError, PprError
from ppr.fingerprints import FingerprintRun, FingerprintStore
from ppr.params import FingerprintParams
from ppr.spark.failures import marked, readable_errors
from ppr.workers import WaveTask, check_receipts, driver_graph, wave_size

RECEIPT_DDL = "block bigint, rows bigint"
_PLACE_IN_PARTITION = (1 << 33) - 1  # the lower bits of Spark's increasing ids


def compute_fingerprints_spark(
    spark: SparkSession,
    graph_url: str | Path,
    out: str | Path,
    params: FingerprintParams,
    *,
    sources: npt.NDArray[np.int32] | None = None,
    progress: Callable[[int, int], None] | None = None,
    block_moves: float = DEFAULT_BLOCK_MOVES,
    wave_blocks: int | None = None,
    cache_dir: str | None = None,
) -> FingerprintStore:
    """Compute fingerprints with Spark; resumes a killed run, does nothing when ``out`` is finished.

    Parameters
    ----------
    spark
        Classic or Connect session.
    graph_url
        Graph store: a path that driver and workers share, or a URL of fsspec, of which each machine makes one
        checked local copy.
    out
        Folder of the fingerprint store, on storage that driver and workers share.
    params
        Parameters of the rows.
    sources
        int32 node ids, in any order; None for every node.
    progress
        Called with (blocks done, blocks in all) at the start and after each wave.
    block_moves
        Predicted moves per block, which is one task.
    wave_blocks
        Blocks per Spark job, which is what a kill loses at most; by default up to
        sixteen per slot of the cluster, and an eighth of all.
    cache_dir
        Where each machine keeps copies of remote graphs; by default below its temporary folder.

    Returns
    -------
    FingerprintStore
        The finished store.

    Raises
    ------
    ParameterError
        A parameter breaks its rule, or ``out`` exists and was made otherwise.
    StoreError
        The graph store is damaged, or differs between driver and workers.
    ResourceError
        A worker cannot reach the graph or import this package, the output is not shared, or Spark fails.
    """
    if wave_blocks is not None and wave_blocks < 1:
        raise ParameterError(f"'wave_blocks' must be positive (got {wave_blocks})")
    location, graph = driver_graph(graph_url, cache_dir)
    out = Path(out).resolve()
    blocks = plan_blocks(graph, sources, params, block_moves=block_moves)
    if wave_blocks is None:
        wave_blocks = wave_size(len(blocks), slots(spark))
    run = FingerprintRun.begin(graph, out, params, lambda: blocks, wave_blocks)
    if run is None:
        return FingerprintStore.open(out, graph=graph, verify=False)
    with run:
        report = progress or (lambda done, total: None)
        report(run.n_blocks_done, run.n_blocks)
        for index, wave in run.pending_waves():
            folder = str(run.begin_wave(index))
            _run_wave(spark, BlockTask(location, graph.checksum, cache_dir, params, folder, tuple(wave)))
            run.complete_wave(index)
            report(run.n_blocks_done, run.n_blocks)
        return run.finish()


def slots(spark: SparkSession) -> int:
    """Tasks that the cluster runs at once: the number of partitions it gives a range by default.

    Counted by their first rows, without a shuffle, of which a lost executor would take its share along.

    Raises
    ------
    ResourceError
        Spark fails.
    """
    places = spark.range(1 << 16).select(monotonically_increasing_id().alias("place"))
    first = places.where(col("place").bitwiseAND(_PLACE_IN_PARTITION) == 0)
    with readable_errors():
        return len(first.collect())


def _run_wave(spark: SparkSession, task: BlockTask) -> None:
    n_blocks = len(task.blocks)
    receipts = spark.range(0, n_blocks, 1, n_blocks).mapInArrow(task, RECEIPT_DDL)
    with readable_errors():
        written = {receipt.block: receipt.rows for receipt in receipts.collect()}
    check_receipts(task.folder, task.blocks, written)


@dataclass(frozen=True)
class BlockTask(WaveTask):
    """Function for ``mapInArrow``: block numbers in, receipts out; the rows go straight into Parquet files.

    Parameters
    ----------
    blocks
        int32 sources of each block of the wave.
    """

    blocks: tuple[npt.NDArray[np.int32], ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Compute and write the blocks whose numbers arrive in the column ``id``."""
        try:
            self.graph()
            _freeze_modules()
            for batch in batches:
                for number in batch.column("id").to_pylist():
                    n_rows = self.write(number, self.blocks[number])
                    yield pa.RecordBatch.from_pydict({"block": [number], "rows": [n_rows]})
        except PprError as error:
            raise marked(error) from error


@cache
def _freeze_modules() -> None:
    """Keep modules and kernels, which stay, out of the collections that pyspark makes after every task."""
    gc.freeze()
