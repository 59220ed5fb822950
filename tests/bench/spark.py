"""What Spark costs: one job on ``local[2]`` and on the local engine, and what fresh workers compile."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import RESTART_PROB, rmat
from harness import RESULTS, Figure, at_most, check, note, run_alone
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from jobs.spark_session import spark_session
from ppr.blocks import compute_block
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.spark import compute_fingerprints_spark

THREADS = 2
PARAMS = FingerprintParams(restart_prob=RESTART_PROB)
WARM_UP_SOURCES = 2000
PROBE_SOURCES = 20_000
LOCAL_S = 75.0  # what the job should take on the local engine

Engine = Callable[[str, NDArray[np.int32]], FingerprintStore]


def measure() -> list[Figure]:
    """Measure one job of a minute or more."""
    graph = rmat(20, 16_000_000)
    session = spark_session(master=f"local[{THREADS}]", app_name="fairpath-bench")
    try:
        with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
            return [*_compiled(session), *_wall_times(session, graph, Path(folder))]
    finally:
        session.stop()


def first_block(_: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Compute a row, and say what was compiled for it and how long it took."""
    from ppr.kernels.topk import walk_rows

    started = time.perf_counter()
    graph = Graph.from_arrays([0, 1, 2], [1, 0])
    compute_block(graph, np.zeros(1, np.int32), PARAMS)
    misses = sum(walk_rows.stats.cache_misses.values())
    yield pa.RecordBatch.from_pydict({"compiled": [misses], "seconds": [time.perf_counter() - started]})


def _compiled(session: SparkSession) -> Iterator[Figure]:
    """Look at the first block of fresh Python workers, after it has been compiled on this machine once."""
    list(first_block(iter(())))
    rows = session.range(0, THREADS, 1, THREADS).mapInArrow(first_block, "compiled long, seconds double")
    found = rows.collect()
    check(len(found) == THREADS, "rows of the workers")
    yield at_most("kernels that a fresh Spark worker compiles", max(row.compiled for row in found), 0)
    yield note("first block of a fresh Spark worker", max(row.seconds for row in found), "s")


def _wall_times(session: SparkSession, graph: Graph, folder: Path) -> Iterator[Figure]:
    def local(out: str, sources: NDArray[np.int32]) -> FingerprintStore:
        return compute_fingerprints(graph, folder / out, PARAMS, sources=sources, threads=THREADS)

    def on_spark(out: str, sources: NDArray[np.int32]) -> FingerprintStore:
        assert graph.path is not None
        return compute_fingerprints_spark(session, graph.path, folder / out, PARAMS, sources=sources)

    shuffled = np.random.default_rng(0).permutation(graph.n_nodes).astype(np.int32)
    on_spark("warm-spark", shuffled[:WARM_UP_SOURCES])
    local("warm-local", shuffled[:WARM_UP_SOURCES])
    probe_s, _ = _timed(local, "probe", shuffled[:PROBE_SOURCES])
    sources = shuffled[: int(PROBE_SOURCES * LOCAL_S / probe_s)]
    local_s, expected = _timed(local, "local", sources)
    spark_s, store = _timed(on_spark, "spark", sources)
    check(store.checksum == expected.checksum, "the engines' rows differ")
    yield at_most("Spark local[2] against two threads: wall time", spark_s / local_s, 1.2, "times")
    yield note("local engine, two threads", local_s, "s")
    yield note("Spark local[2]", spark_s, "s")
    yield note("sources of the job", len(sources))


def _timed(engine: Engine, out: str, sources: NDArray[np.int32]) -> tuple[float, FingerprintStore]:
    os.sync()  # what the run before has left to be written to the disk is not this one's
    started = time.perf_counter()
    store = engine(out, sources)
    return time.perf_counter() - started, store


if __name__ == "__main__":
    run_alone("spark", measure)
