"""Memory of a job beyond the memory-mapped graph, and that it does not grow with the number of sources.

Each job runs in a process of its own, watched from outside. Counted is the proportional share (PSS) of every
page of the process and its children, the JVM and the Python workers among them, except pages of the graph's
files: so pages that processes share count once. Result files being written through memory maps do count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from datasets import RESTART_PROB, rmat
from harness import RESULTS, Figure, at_most, check, note, run_alone

from ppr.graph import Graph
from ppr.params import FingerprintParams

ENGINES = {"local": "local engine, two threads", "spark": "Spark local[2]"}
FEW, MANY = 15_000, 150_000
LIMIT_GIB = 1.5
GROWTH = 1.2  # what still counts as flat
THREADS = 2
SAMPLE_S = 0.25
PARAMS = FingerprintParams(restart_prob=RESTART_PROB)


def measure() -> list[Figure]:
    """Watch both engines, with few sources and with ten times as many."""
    graph = rmat(21, 33_000_000)
    assert graph.path is not None
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        watched = {
            (engine, n_sources): _watch(graph.path, engine, n_sources, Path(folder))
            for n_sources in (FEW, MANY)
            for engine in ENGINES
        }
    return list(_figures(watched))


def _figures(watched: dict[tuple[str, int], tuple[float, str]]) -> Iterator[Figure]:
    for n_sources in (FEW, MANY):
        checksums = {watched[engine, n_sources][1] for engine in ENGINES}
        check(len(checksums) == 1, f"the engines' rows for {n_sources} sources differ")
    for engine, title in ENGINES.items():
        few, many = watched[engine, FEW][0], watched[engine, MANY][0]
        yield at_most(f"{title}: peak memory beside the graph, {MANY:,} sources", many, LIMIT_GIB, "GiB")
        yield note(f"{title}: peak memory beside the graph, {FEW:,} sources", few, "GiB")
        yield at_most(f"{title}: growth of it with ten times the sources", many / few, GROWTH, "times")


def _watch(graph: Path, engine: str, n_sources: int, folder: Path) -> tuple[float, str]:
    """Run a job in a process of its own; returns its peak memory in GiB and the checksum of its rows."""
    out = folder / f"{engine}-{n_sources}"
    command = [sys.executable, __file__, engine, str(n_sources), str(graph), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        peak = 0
        while job.poll() is None:
            peak = max(peak, _bytes_beside(graph, psutil.Process(job.pid)))
            time.sleep(SAMPLE_S)
        assert job.stdout is not None
        checksum = job.stdout.read().strip()
    check(job.returncode == 0, f"the job of the {engine} engine failed")
    return peak / 2**30, checksum


def _bytes_beside(graph: Path, job: psutil.Process) -> int:
    """Proportional memory of a process and its children without the mapped files of the graph."""
    total = 0
    try:
        processes = [job, *job.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            maps = process.memory_maps()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has just ended
        total += sum(mapping.pss for mapping in maps if not mapping.path.startswith(f"{graph}/"))
    return total


def _job(engine: str, n_sources: int, graph_path: Path, out: Path) -> str:
    """Compute the rows of some sources, in the process that is watched."""
    graph = Graph.open(graph_path, verify=False)
    sources = np.random.default_rng(0).permutation(graph.n_nodes)[:n_sources].astype(np.int32)
    if engine == "local":
        from ppr.local import compute_fingerprints

        return compute_fingerprints(graph, out, PARAMS, sources=sources, threads=THREADS).checksum
    from jobs.spark_session import spark_session
    from ppr.spark import compute_fingerprints_spark

    session = spark_session(master=f"local[{THREADS}]", app_name="fairpath-bench")
    try:
        return compute_fingerprints_spark(session, graph_path, out, PARAMS, sources=sources).checksum
    finally:
        session.stop()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        run_alone("memory", measure)
    print(_job(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])))
