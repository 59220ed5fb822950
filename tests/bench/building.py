"""A graph built on Spark beside the local builder: time, and that the driver's memory is flat in the edges.

R-MAT graphs of 2**18 nodes with strings as keys. Each build runs in a process of its own, watched from
outside; Spark is a cluster of one executor with two slots, so that the driver is seen apart from the workers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from harness import RESULTS, Figure, at_most, check, note, run_alone
from rmat import write_rmat

SCALE = 18
FEW, MANY = 1_000_000, 4_000_000
GROWTH = 1.2  # what still counts as flat
DRIVER_HEAP = "512m"
MASTER = "local-cluster[1,2,2048]"
SAMPLE_S = 0.1


def measure() -> list[Figure]:
    """Build graphs with few and with many edges, with both builders."""
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        return list(_figures(Path(folder)))


def _figures(folder: Path) -> Iterator[Figure]:
    peaks = []
    for n_edges in (FEW, MANY):
        edges = folder / f"{n_edges}.parquet"
        _write_edges(edges, n_edges)
        local_s, _, expected = _watch("local", edges, folder / f"local-{n_edges}")
        spark_s, peak, checksum = _watch("spark", edges, folder / f"spark-{n_edges}")
        check(checksum == expected, f"the stores of {n_edges} edges differ")
        peaks.append(peak)
        yield note(f"local builder, {n_edges:,} edges", local_s, "s")
        yield note(f"Spark, one executor with two slots, {n_edges:,} edges", spark_s, "s")
        yield note(f"Spark against the local builder, {n_edges:,} edges", spark_s / local_s, "times")
        yield note(f"driver beside its JVM of {DRIVER_HEAP}: peak memory, {n_edges:,} edges", peak, "MiB")
    yield at_most("growth of it with four times the edges", peaks[1] / peaks[0], GROWTH, "times")


def _write_edges(path: Path, n_edges: int) -> None:
    """An R-MAT edge list whose keys are strings, in row groups of a million edges."""
    drawn = path.with_suffix(".drawn")
    write_rmat(drawn, SCALE, n_edges, seed=0)
    with (
        pq.ParquetFile(drawn) as file,
        pq.ParquetWriter(path, pa.schema(dict.fromkeys(("src", "dst"), "string"))) as out,
    ):
        for batch in file.iter_batches(1 << 20):
            keys = [pc.binary_join_element_wise("node", side.cast("string"), "-") for side in batch.columns]
            out.write_table(pa.table(dict(zip(("src", "dst"), keys, strict=True))))
    drawn.unlink()


def _watch(engine: str, edges: Path, out: Path) -> tuple[float, float, str]:
    """Build in a process of its own; returns its seconds, its peak memory in MiB and the checksum."""
    command = [sys.executable, __file__, engine, str(edges), str(out)]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        while job.poll() is None:
            peak = max(peak, _own_bytes(job.pid))
            time.sleep(SAMPLE_S)
        assert job.stdout is not None
        seconds, checksum = job.stdout.read().split()
    check(job.returncode == 0, f"the {engine} builder failed")
    return float(seconds), peak / 2**20, checksum


def _own_bytes(pid: int) -> int:
    """Memory of a process without the files that it maps."""
    try:
        return sum(mapping.anonymous for mapping in psutil.Process(pid).memory_maps())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0  # it has just ended


def _job(engine: str, edges: Path, out: Path) -> str:
    """Build a graph in the process that is watched; its seconds leave out what starts Python and Spark."""
    if engine == "local":
        from ppr.build import build_graph

        started = time.perf_counter()
        graph = build_graph(edges, out)
        return f"{time.perf_counter() - started} {graph.checksum}"
    from jobs.spark_session import spark_session
    from ppr.spark import build_graph_spark

    session = spark_session(
        master=MASTER, app_name="fairpath-bench", conf={"spark.driver.memory": DRIVER_HEAP}
    )
    try:
        started = time.perf_counter()
        graph = build_graph_spark(session, edges, out)
        return f"{time.perf_counter() - started} {graph.checksum}"
    finally:
        session.stop()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        run_alone("building", measure)
    print(_job(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
