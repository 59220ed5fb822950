"""What Dask costs: one job on a cluster within the process and on the local engine, also with their start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from datasets import RESTART_PROB, rmat
from distributed import Client, LocalCluster
from harness import RESULTS, Figure, at_most, check, note, run_alone
from numpy.typing import NDArray

from ppr.dask import compute_fingerprints_dask, local_client
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams

THREADS = 2
PARAMS = FingerprintParams(restart_prob=RESTART_PROB)
WARM_UP_SOURCES = 2000
PROBE_SOURCES = 10_000
LOCAL_S = 40.0  # what the job should take on the local engine
SLOWER = 1.2

Engine = Callable[[str, NDArray[np.int32]], FingerprintStore]


def measure() -> list[Figure]:
    """Measure one job of two thirds of a minute, in turns."""
    graph = rmat(20, 16_000_000)
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        return list(_figures(graph, Path(folder)))


def _figures(graph: Graph, folder: Path) -> Iterator[Figure]:
    assert graph.path is not None
    path = graph.path
    shuffled = np.random.default_rng(0).permutation(graph.n_nodes).astype(np.int32)

    def local(out: str, sources: NDArray[np.int32]) -> FingerprintStore:
        return compute_fingerprints(graph, folder / out, PARAMS, sources=sources, threads=THREADS)

    def on(client: Client) -> Engine:
        return lambda out, sources: compute_fingerprints_dask(
            client, path, folder / out, PARAMS, sources=sources
        )

    local("warm-up", shuffled[:WARM_UP_SOURCES])
    probe_s, _ = _timed(local, "probe", shuffled[:PROBE_SOURCES])
    sources = shuffled[: int(PROBE_SOURCES * LOCAL_S / probe_s)]
    local_s, expected = _timed(local, "local", sources)
    with local_client(THREADS) as client:
        threads_s, store = _timed(on(client), "threads", sources)
    check(store.checksum == expected.checksum, "the engines' rows differ")
    with (
        LocalCluster(
            n_workers=THREADS, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        on(client)("warm-processes", shuffled[:WARM_UP_SOURCES])
        processes_s, store = _timed(on(client), "processes", sources)
    check(store.checksum == expected.checksum, "the engines' rows differ")
    yield at_most(
        "Dask, two threads of this process, against the local engine", threads_s / local_s, SLOWER, "times"
    )
    commands = {engine: _command_s(path, folder, engine, sources) for engine in ("local", "dask")}
    ratio = commands["dask"] / commands["local"]
    yield at_most("... as commands, with the start of Python and the cluster", ratio, SLOWER, "times")
    yield note("Dask, two worker processes, against the local engine", processes_s / local_s, "times")
    yield note("local engine, two threads", local_s, "s")
    yield note("sources of the job", len(sources))


def _timed(engine: Engine, out: str, sources: NDArray[np.int32]) -> tuple[float, FingerprintStore]:
    os.sync()  # what the run before has left to be written to the disk is not this one's
    started = time.perf_counter()
    store = engine(out, sources)
    return time.perf_counter() - started, store


def _command_s(graph: Path, folder: Path, engine: str, sources: NDArray[np.int32]) -> float:
    """Seconds of ``fairpath fingerprints`` on an engine."""
    keys = folder / "sources.txt"
    keys.write_text("\n".join(map(str, Graph.open(graph, verify=False).keys(sources).tolist())))
    command = [
        sys.executable,
        "-m",
        "jobs.cli",
        "fingerprints",
        str(graph),
        "--out",
        str(folder / f"by-{engine}"),
    ]
    command += ["--engine", engine, "--threads", str(THREADS), "--sources", str(keys), "--log-level", "error"]
    os.sync()
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    check(json.loads(done.stdout)["sources"] == len(sources), "sources of the command")
    return seconds


if __name__ == "__main__":
    run_alone("dask_engine", measure)
