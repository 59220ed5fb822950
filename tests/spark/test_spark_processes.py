"""The Spark engine in processes of their own: killed in the middle of a run, and through Spark Connect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.spark import compute_fingerprints_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.spark
PARAMS = FingerprintParams(n_walks=150, top_k=20, seed=2)
JOB = """
import sys
from jobs.spark_session import spark_session
from ppr.params import FingerprintParams
session = spark_session(**{sys.argv[1]: "local[2]"})
from ppr.spark import compute_fingerprints_spark
graph, out, wave_blocks = sys.argv[2:]
params = FingerprintParams(n_walks=150, top_k=20, seed=2)
compute_fingerprints_spark(session, graph, out, params, block_moves=10_000, wave_blocks=int(wave_blocks))
session.stop()
"""


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    rng = np.random.default_rng(6)
    indices = np.concatenate([np.sort(rng.choice(400, 5, replace=False)) for _ in range(400)])
    return Graph.from_arrays(np.arange(0, 2001, 5), indices, rng.random(2000) + 0.1).save(tmp_path / "graph")


def start(
    session: str, graph: Path, out: Path, *, wave_blocks: int, **streams: int
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", JOB, session, str(graph), str(out), str(wave_blocks)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def finished_waves(out: Path) -> set[Path]:
    return set(out.with_name("out.partial").glob("waves/*/_SUCCESS"))


@pytest.mark.long
def test_run_killed_in_the_middle_is_resumed(spark: SparkSession, graph: Graph, tmp_path: Path) -> None:
    assert graph.path is not None
    out = tmp_path / "out"
    with start("master", graph.path, out, wave_blocks=2) as process:
        give_up = time.monotonic() + 120
        while not finished_waves(out) and process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)  # the JVM and all
    before = finished_waves(out)
    assert before
    assert not out.exists()
    written = {path: path.stat().st_mtime_ns for path in before}
    calls: list[int] = []

    def progress(done: int, total: int) -> None:
        calls.append(done)
        if done < total:
            assert {path: path.stat().st_mtime_ns for path in written} == written

    store = compute_fingerprints_spark(spark, graph.path, out, PARAMS, progress=progress)
    assert calls[0] >= 2 * len(before) - 1
    assert calls[0] < calls[-1]
    assert store.checksum == compute_fingerprints(graph, tmp_path / "local", PARAMS).checksum


@pytest.mark.long
def test_through_spark_connect(graph: Graph, tmp_path: Path) -> None:
    for package in ("grpc", "grpc_status", "zstandard"):
        pytest.importorskip(package, reason="the extra 'connect' is not installed")
    assert graph.path is not None
    with start("remote", graph.path, tmp_path / "out", wave_blocks=16, stderr=subprocess.PIPE) as process:
        _, trace = process.communicate(timeout=120)
    assert process.returncode == 0, trace.decode()
    local = compute_fingerprints(graph, tmp_path / "local", PARAMS)
    assert FingerprintStore.open(tmp_path / "out", graph=graph).checksum == local.checksum
