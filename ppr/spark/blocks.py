"""Spark engine: waves of source blocks, one Spark job each, written as Parquet by the workers.

A task holds one block. Its worker opens the graph store once per process, memory-mapped, so that all workers
of a machine share one copy in the page cache, and writes the rows itself: no row passes through the driver.
Only the DataFrame API is used, so the same code runs in a classic session and through Spark Connect. The rows
have the same bits as any other engine's, so retries and speculative copies of a task are harmless.
"""

from __future__ import annotations

import gc
import math
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.functions import spark_partition_id

from ppr.blocks import DEFAULT_BLOCK_MOVES, compile_kernels, compute_block, plan_blocks
from ppr.errors import MissingDataError, ParameterError, PprError, ResourceError, StoreError
from ppr.fingerprints import FingerprintRun, FingerprintStore, write_block
from ppr.graph import Graph
from ppr.local_copy import is_url, local_store
from ppr.machine import locked, shared_folder
from ppr.manifest import full_disk_is_an_error
from ppr.params import FingerprintParams
from ppr.spark.failures import marked, raise_readable

RECEIPT_DDL = "block bigint, rows bigint"
_BLOCKS_PER_SLOT = 16  # per wave: some seconds of work, so that starting a job and its last tasks cost little
_WAVES = 8  # at least, where each still gives every slot a block: small jobs show progress too


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
    location = str(graph_url) if is_url(graph_url) else str(Path(graph_url).resolve())
    graph = Graph.open(local_store(location, cache_dir=cache_dir))
    out = Path(out).resolve()
    blocks = plan_blocks(graph, sources, params, block_moves=block_moves)
    if wave_blocks is None:
        slots = _slots(spark)
        per_slot = math.ceil(len(blocks) / (_WAVES * slots))  # whole rounds: no slot idles at a wave's end
        wave_blocks = slots * max(1, min(_BLOCKS_PER_SLOT, per_slot))
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


def _slots(spark: SparkSession) -> int:
    """Tasks that the cluster runs at once: the number of partitions it gives a range by default."""
    return spark.range(1 << 16).select(spark_partition_id()).distinct().count()


def _run_wave(spark: SparkSession, task: BlockTask) -> None:
    n_blocks = len(task.blocks)
    receipts = spark.range(0, n_blocks, 1, n_blocks).mapInArrow(task, RECEIPT_DDL)
    try:
        written = {receipt.block: receipt.rows for receipt in receipts.collect()}
    except (PySparkException, Py4JError) as error:
        raise_readable(error)
    if written != {number: block.size for number, block in enumerate(task.blocks)} or n_blocks != len(
        list(Path(task.folder).glob("*.parquet"))
    ):
        raise ResourceError(
            f"{task.folder}: what the workers wrote is not here; the output must lie on storage that they "
            "share with the driver"
        )


@dataclass(frozen=True)
class BlockTask:
    """Function for ``mapInArrow``: block numbers in, receipts out; the rows go straight into Parquet files.

    Pickled by reference to this module.

    Parameters
    ----------
    graph_url
        Absolute path or URL of the graph store.
    checksum
        Checksum of the graph that the driver planned with.
    cache_dir
        Where to keep a copy of a remote graph.
    params
        Parameters of the rows.
    folder
        Folder of the wave, shared with the driver.
    blocks
        int32 sources of each block of the wave.
    """

    graph_url: str
    checksum: str
    cache_dir: str | None
    params: FingerprintParams
    folder: str
    blocks: tuple[npt.NDArray[np.int32], ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Compute and write the blocks whose numbers arrive in the column ``id``."""
        try:
            graph = worker_graph(self.graph_url, self.checksum, self.cache_dir)
            folder = Path(self.folder)
            if not folder.is_dir():
                raise ResourceError(
                    f"{folder}: not there on the worker {socket.gethostname()}; the output must lie on "
                    "storage that driver and workers share"
                )
            for batch in batches:
                for number in batch.column("id").to_pylist():
                    table = compute_block(graph, self.blocks[number], self.params)
                    with full_disk_is_an_error(folder):
                        write_block(folder, number, table)
                    yield pa.RecordBatch.from_pydict({"block": [number], "rows": [table.num_rows]})
        except PprError as error:
            raise marked(error) from error


@lru_cache(maxsize=2)
def worker_graph(graph_url: str, checksum: str, cache_dir: str | None) -> Graph:
    """Graph of this worker process, opened once; the driver has verified the files of a shared store.

    Raises
    ------
    ResourceError
        The path does not exist on this machine.
    StoreError
        The store is not the one that the driver planned with.
    """
    try:
        graph = Graph.open(local_store(graph_url, cache_dir=cache_dir), verify=False)
    except MissingDataError as error:
        raise ResourceError(
            f"{error} on the worker {socket.gethostname()}; put the graph on storage that driver and workers "
            "share, or give a URL, such as s3://..., that each machine copies once"
        ) from error
    with locked(shared_folder() / "kernels.lock"):  # the first process compiles, the others load
        compile_kernels()
    # pyspark collects garbage after every task; modules and kernels, which stay, need not be searched.
    gc.freeze()
    if graph.checksum != checksum:
        raise StoreError(
            f"{graph_url}: the checksum on the worker {socket.gethostname()} must be {checksum} "
            f"(got {graph.checksum})"
        )
    return graph
