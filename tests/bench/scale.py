"""Graphs beyond a worker's memory: partitioned walks on Spark against the in-memory engine.

Each worker of a cluster of processes may hold a quarter of the graph. Its memory is the proportional share
(PSS) of every page of its Python process, mapped pages of the graph among them, less what the same process
has after a warm-up on a tiny graph: interpreter, libraries, kernels. Files of messages that only the page
cache holds do not count, nor does the JVM, through which no message goes. The same sources are walked by two
threads over the whole mapped graph, in turn in the same run.

What was measured on each graph is kept for :mod:`scale_model`, which is checked against it, and for the
pictures.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from datasets import DATA, RESTART_PROB
from harness import RESULTS, Figure, at_most, check, note, run_alone
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from rmat import write_rmat
from rmat_store import write_rmat_store
from scale_model import POINTS, WORKERS, Point, confirm, write_tables
from scale_pictures import draw

from jobs.spark_session import spark_session
from ppr.build import build_graph
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.partitioned import Progress, graph_bytes
from ppr.spark import compute_fingerprints_partitioned_spark

MASTER = f"local-cluster[{WORKERS},1,2048]"
EDGES_PER_NODE = 16  # drawn, undirected
SMALLER, LARGEST = (18, 20), 23
SOURCES = 20_000  # on the smaller graphs
SAMPLES = (10_000, 20_000, 40_000)  # on the largest
SHARE = 0.25  # of the graph, for a worker
SLOWER = 12.0
FLAT = 1.2
BUILD_SCALE = 18
PARAMS = FingerprintParams(restart_prob=RESTART_PROB)
FEW_STEPS = FingerprintParams(restart_prob=RESTART_PROB, max_steps=3)
_SAMPLE_S = 0.1
_LISTED_S = 2.0

Round = tuple[float, Progress, int]
"""Seconds of a round, what it says of itself, and bytes of messages on the disk after it."""


def measure() -> list[Figure]:
    """Measure three graphs, the largest of them with three numbers of sources."""
    session = spark_session(master=MASTER, app_name="fairpath-bench")
    try:
        with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
            bench = _Bench(session, Path(folder))
            bench.warm_up()
            points = [bench.point(scale, SOURCES) for scale in SMALLER]
            points += [bench.point(LARGEST, n_sources) for n_sources in SAMPLES]
            build_s = _build_seconds(Path(folder))
    finally:
        session.stop()
    stored = {"points": [asdict(point) for point in points], "build_s_per_edge": build_s}
    POINTS.write_text(json.dumps(stored, indent=1) + "\n")
    figures = [*_figures(points), *confirm(points)]
    draw()
    write_tables()
    return figures


def _figures(points: list[Point]) -> Iterator[Figure]:
    largest = [point for point in points if point.scale == LARGEST]
    most = largest[-1]
    limit = most.limit_bytes / 2**20
    title = f"R-MAT 2^{LARGEST}, {most.n_edges / 2e6:.0f}M undirected edges"
    peak = max(point.peak_bytes for point in largest) / 2**20
    check(peak > 0, "no worker was seen at work")
    yield at_most(f"{title}: peak memory of a worker", peak, limit, "MiB")
    yield note("... the bytes of the graph that walks touch", most.graph_bytes / 2**20, "MiB")
    yield note("... memory of an idle worker, which is not counted", most.idle_bytes / 2**20, "MiB")
    for point in largest:
        slower = point.partitioned_s / point.in_memory_s
        yield at_most(
            f"{title}, {point.n_sources:,} sources: wall time against in memory", slower, SLOWER, "times"
        )
    slower = most.partitioned_cpu_s / most.in_memory_cpu_s
    yield at_most(f"{title}, {most.n_sources:,} sources: CPU time against in memory", slower, SLOWER, "times")
    first = largest[0]
    growth = most.partitioned_s / most.n_sources / (first.partitioned_s / first.n_sources)
    yield at_most(
        f"wall time per source, {most.n_sources:,} sources against {first.n_sources:,}", growth, FLAT, "times"
    )
    for point in points:
        name = f"2^{point.scale}, {point.n_sources:,} sources"
        yield note(f"{name}: in memory, of one core", point.in_memory_ns, "ns per move")
        yield note(f"{name}: partitioned, of one core", point.partitioned_ns, "ns per move")
        yield note(f"{name}: exchanged", point.exchanged_bytes / point.moves, "bytes per move")
        yield note(f"{name}: partitioned, wall time", point.partitioned_s, "s")
        yield note(f"{name}: rounds", point.rounds)


@dataclass(frozen=True, slots=True)
class _Usage:
    """CPU seconds so far: of the Python workers, and of the JVMs."""

    workers: float
    jvms: float


class _Bench:
    """The cluster, and what is watched of it."""

    def __init__(self, session: SparkSession, folder: Path) -> None:
        self._session = session
        self._folder = folder
        self._idle = 0

    def warm_up(self) -> None:
        """Let both engines load their kernels, and see what an idle worker takes."""
        graph = Graph.from_arrays(np.arange(0, 1025, 2), np.arange(1024) % 512).save(self._folder / "tiny")
        for number in range(2):  # twice: one worker may have had all tasks of the first rounds
            self._partitioned(graph, np.arange(512, dtype=np.int32), f"warm-up-{number}", 16 << 20, FEW_STEPS)
        compute_fingerprints(graph, self._folder / "warm-up", PARAMS, threads=WORKERS)
        time.sleep(1.0)
        workers = _workers()
        check(len(workers) == WORKERS, f"there must be {WORKERS} Python workers (found {len(workers)})")
        self._idle = max(map(_pss, workers))

    def point(self, scale: int, n_sources: int) -> Point:
        """Walk some sources of a graph in memory and in parts; the rows must be the same."""
        graph = undirected(scale)
        nodes = np.flatnonzero(graph.out_degree).astype(np.int32)
        sources = np.random.default_rng(0).choice(nodes, n_sources, replace=False)
        limit = int(SHARE * graph_bytes(graph))
        name = f"{scale}-{n_sources}"
        in_memory_s, in_memory_cpu_s, seal_s, expected = self._in_memory(graph, sources, name)
        before = _usage()
        with _Watch() as watch:
            partitioned_s, rounds, store = self._partitioned(graph, sources, f"parts-{name}", limit)
        after = _usage()
        check(store.checksum == expected.checksum, f"the engines' rows differ on 2^{scale}")
        assert graph.path is not None
        return Point(
            scale=scale,
            n_nodes=graph.n_nodes,
            n_edges=graph.n_edges,
            graph_bytes=graph_bytes(graph),
            store_bytes=_folder_bytes(graph.path),
            n_sources=n_sources,
            moves=int(store.moves.sum()),
            row_bytes=_folder_bytes(store.path) / n_sources,
            in_memory_s=in_memory_s,
            in_memory_cpu_s=in_memory_cpu_s,
            seal_s=seal_s,
            partitioned_s=partitioned_s,
            partitioned_cpu_s=after.workers - before.workers,
            jvm_cpu_s=after.jvms - before.jvms,
            limit_bytes=limit,
            idle_bytes=self._idle,
            peak_bytes=watch.peak - self._idle,
            rounds=len(rounds),
            messages=sum(seen.messages for _, seen, _ in rounds),
            exchanged_bytes=sum(seen.n_bytes for _, seen, _ in rounds),
            disk_bytes=max(n_bytes for *_, n_bytes in rounds),
            round_s=_seconds_of_an_empty_round(rounds),
        )

    def _in_memory(
        self, graph: Graph, sources: NDArray[np.int32], name: str
    ) -> tuple[float, float, float, FingerprintStore]:
        """Seconds, CPU seconds, seconds of them for building the store, and the rows."""
        ended = [0.0]

        def walked(done: int, total: int) -> None:
            ended[0] = time.perf_counter()

        # The mapped graph is read once, as it is for both engines.
        compute_fingerprints(
            graph, self._folder / f"first-{name}", PARAMS, sources=sources[:500], threads=WORKERS
        )
        os.sync()
        started, cpu = time.perf_counter(), time.process_time()
        out = self._folder / f"local-{name}"
        store = compute_fingerprints(graph, out, PARAMS, sources=sources, threads=WORKERS, progress=walked)
        stopped = time.perf_counter()
        return stopped - started, time.process_time() - cpu, stopped - ended[0], store

    def _partitioned(
        self,
        graph: Graph,
        sources: NDArray[np.int32],
        name: str,
        limit: int,
        params: FingerprintParams = PARAMS,
    ) -> tuple[float, list[Round], FingerprintStore]:
        """Seconds, the rounds, and the rows."""
        assert graph.path is not None
        rounds: list[Round] = []
        exchange = self._folder / f"{name}.partial" / "rounds"
        os.sync()
        started = last = time.perf_counter()

        def seen(progress: Progress) -> None:
            nonlocal last
            now = time.perf_counter()
            if progress.rounds:
                rounds.append((now - last, progress, _folder_bytes(exchange)))
            last = time.perf_counter()

        store = compute_fingerprints_partitioned_spark(
            self._session,
            graph.path,
            self._folder / name,
            params,
            sources=sources,
            worker_memory=limit,
            progress=seen,
        )
        return time.perf_counter() - started, rounds, store


class _Watch:
    """Watches the workers' memory from a thread of its own."""

    def __enter__(self) -> _Watch:
        self.peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        workers, listed = _workers(), time.monotonic()
        while not self._ended.wait(_SAMPLE_S):
            if time.monotonic() - listed > _LISTED_S:  # idle workers end, and others take their place
                workers, listed = _workers(), time.monotonic()
            for process in workers:
                with suppress(OSError, psutil.NoSuchProcess):  # it has just ended
                    self.peak = max(self.peak, _pss(process))


def _processes(fits: Callable[[list[str], psutil.Process], bool]) -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if fits(one.cmdline(), one):
                found.append(one)
    return found


def _is_daemon(command: list[str]) -> bool:
    return "pyspark.daemon" in command


def _workers() -> list[psutil.Process]:
    """Python workers of the executors: what the daemons have forked."""

    def forked(command: list[str], one: psutil.Process) -> bool:
        parent = one.parent()
        return parent is not None and _is_daemon(command) and _is_daemon(parent.cmdline())

    return _processes(forked)


def _pss(process: psutil.Process) -> int:
    """Proportional memory of a process, mapped files among it."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise OSError("no Pss in smaps_rollup")


def _usage() -> _Usage:
    def seconds(processes: list[psutil.Process]) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    return _Usage(
        seconds(_workers()),
        seconds(_processes(lambda command, _: command[:1] != [] and command[0].endswith("java"))),
    )


def _seconds_of_an_empty_round(rounds: list[Round]) -> float:
    """What a round takes beside its messages: the intercept of seconds over messages."""
    seconds = np.array([one for one, *_ in rounds])
    messages = np.array([[1.0, seen.messages] for _, seen, _ in rounds])
    return float(np.linalg.lstsq(messages, seconds, rcond=None)[0][0])


def _build_seconds(folder: Path) -> float:
    """CPU seconds of one core per undirected edge of a Parquet file, from there to a sealed store."""
    edges = folder / "edges.parquet"
    n_edges = EDGES_PER_NODE << BUILD_SCALE
    write_rmat(edges, BUILD_SCALE, n_edges, seed=0)
    started = time.process_time()
    build_graph(EdgeInput(edges, directed=False), folder / "built")
    return (time.process_time() - started) / n_edges


def undirected(scale: int) -> Graph:
    """R-MAT graph of ``2**scale`` nodes, sixteen times as many undirected edges drawn; built once."""
    n_edges = EDGES_PER_NODE << scale
    folder = DATA / f"rmat-undirected-{scale}-{n_edges}"
    if not folder.exists():
        DATA.mkdir(parents=True, exist_ok=True)
        write_rmat_store(folder, scale, n_edges)
    return Graph.open(folder, verify=False)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run_alone("scale", measure)
