"""Spark engine for graphs that exceed a worker's memory: rounds over parts, one Spark job each.

A task works on one part: it maps that range of the graph store's edges and nothing else of it. Messages go
through files on the storage that the output lies on (:mod:`ppr.partitioned.exchange`), not through Spark's
shuffle: through the JVM go only the numbers of parts and receipts. What an executor has written outlives it.
Only the DataFrame API is used, so the same code runs through Spark Connect.
"""

from __future__ import annotations

import gc
import math
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import SparkSession

from ppr.errors import PprError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.machine import locked, memory_limit_bytes, shared_folder
from ppr.params import FingerprintParams
from ppr.partitioned import Choice, Sizes, choose, compile_kernels, plan_sizes
from ppr.partitioned.choice import Wanted
from ppr.partitioned.rounds import Progress, run_rounds
from ppr.partitioned.task import Receipt, RoundTask
from ppr.spark.blocks import slots
from ppr.spark.failures import marked, readable_errors
from ppr.workers import check_shared_folder, check_written, driver_graph, worker_graph

RECEIPT_DDL = "part bigint, sent array<bigint>, bytes bigint"
OFFER_DDL = "host string, memory bigint"
_OFFERS_PER_SLOT = 2


def choose_engine(
    spark: SparkSession, graph: Graph, *, worker_memory: int | None = None, partitioned: Wanted = "auto"
) -> Choice:
    """Ask the workers for their memory, and choose.

    Parameters
    ----------
    spark
        Classic or Connect session.
    graph
        The graph; only its size matters.
    worker_memory
        Bytes of graph and messages that a worker may hold; by default what its machine or container has.
    partitioned
        Whether to leave the choice to the sizes.

    Raises
    ------
    ParameterError
        ``worker_memory`` is too small for any messages.
    ResourceError
        Spark fails.
    """
    n_slots = slots(spark)
    n_asked = _OFFERS_PER_SLOT * n_slots
    offers = spark.range(0, n_asked, 1, n_asked).mapInArrow(_offer, OFFER_DDL)
    with readable_errors():
        offered = offers.collect()
    n_hosts = len({row.host for row in offered})
    return choose(
        graph,
        machine_bytes=min(row.memory for row in offered),  # a host may run several containers
        slots_per_machine=math.ceil(n_slots / n_hosts),
        slots=n_slots,
        worker_memory=worker_memory,
        partitioned=partitioned,
    )


def _offer(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Memory of the worker's machine or container, for ``mapInArrow``."""
    for batch in batches:
        del batch
        yield pa.RecordBatch.from_pydict({"host": [socket.gethostname()], "memory": [memory_limit_bytes()]})


def compute_fingerprints_partitioned_spark(
    spark: SparkSession,
    graph_url: str | Path,
    out: str | Path,
    params: FingerprintParams,
    *,
    choice: Choice | None = None,
    worker_memory: int | None = None,
    sizes: Sizes | None = None,
    sources: npt.NDArray[np.int32] | None = None,
    progress: Callable[[Progress], None] | None = None,
    cache_dir: str | None = None,
    cut_share: float | None = None,
) -> FingerprintStore:
    """Compute fingerprints in rounds over parts; resumes a killed run, does nothing when ``out`` is finished.

    Parameters
    ----------
    spark
        Classic or Connect session.
    graph_url
        Graph store: a path that driver and workers share, or a URL of fsspec, of which each machine makes one
        checked local copy.
    out
        Folder of the fingerprint store, on storage that driver and workers share; messages go through it.
    params
        Parameters of the rows.
    choice
        Of :func:`choose_engine`, for the slots and their memory; None asks the workers.
    worker_memory
        Bytes of graph and messages that a worker may hold, beside the interpreter and its libraries.
    sizes
        Instead of what the memory asks for.
    sources
        int32 node ids, in any order; None for every node.
    progress
        Called at the start and after each round.
    cache_dir
        Where each machine keeps copies of remote graphs; by default below its temporary folder.
    cut_share
        Of a part, above which a row may be cut.

    Returns
    -------
    FingerprintStore
        The finished store, with the same bits as any other engine's.

    Raises
    ------
    ParameterError
        A parameter breaks its rule, or ``out`` exists and was made otherwise.
    StoreError
        The graph store is damaged or differs between driver and workers, or messages are damaged.
    ResourceError
        A worker cannot reach the graph or import this package, the output is not shared, its disk is full,
        the memory is too small, or Spark fails.
    """
    location, graph = driver_graph(graph_url, cache_dir)
    if sizes is None:
        if choice is None:
            choice = choose_engine(spark, graph, worker_memory=worker_memory, partitioned="always")
        sizes = plan_sizes(
            graph, params, memory_bytes=worker_memory or choice.memory_bytes, slots=choice.slots
        )

    def execute(task: RoundTask) -> Sequence[Receipt]:
        return _run_round(spark, PartTask(location, graph.checksum, cache_dir, task))

    return run_rounds(
        graph,
        Path(out).resolve(),
        params,
        execute,
        sizes,
        sources=sources,
        progress=progress,
        cut_share=cut_share,
    )


def _run_round(spark: SparkSession, task: PartTask) -> list[Receipt]:
    n_parts = len(task.round.parts)
    receipts = spark.range(0, n_parts, 1, n_parts).mapInArrow(task, RECEIPT_DDL)
    with readable_errors():
        rows = receipts.collect()
    if task.round.walking:
        check_written(task.round.folder, all(path.exists() for path in task.round.written()))
    return [Receipt(row.part, tuple(row.sent), row.bytes) for row in rows]


@dataclass(frozen=True)
class PartTask:
    """Function for ``mapInArrow``: numbers of parts in, receipts out; messages and rows go into files.

    Pickled by reference to this module.

    Parameters
    ----------
    graph_url
        Absolute path or URL of the graph store.
    checksum
        Checksum of the graph that the driver planned with.
    cache_dir
        Where to keep a copy of a remote graph.
    round
        What to do.
    """

    graph_url: str
    checksum: str
    cache_dir: str | None
    round: RoundTask

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Do what the round asks of the parts whose numbers arrive in the column ``id``."""
        try:
            graph = worker_graph(self.graph_url, self.checksum, self.cache_dir)
            _ready()
            check_shared_folder(self.round.folder)
            for batch in batches:
                for part in batch.column("id").to_pylist():
                    receipt = self.round.run(graph, part)
                    columns = [
                        pa.array([part]),
                        pa.array([list(receipt.sent)], pa.list_(pa.int64())),
                        pa.array([receipt.n_bytes]),
                    ]
                    yield pa.RecordBatch.from_arrays(columns, ["part", "sent", "bytes"])
        except PprError as error:
            raise marked(error) from error


@cache
def _ready() -> None:
    """Load what a worker needs, once; the first process compiles."""
    with locked(shared_folder() / "kernels.lock"), tempfile.TemporaryDirectory() as scratch:
        compile_kernels(Path(scratch))
    gc.freeze()  # modules and kernels stay: pyspark's collections after every task need not search them
