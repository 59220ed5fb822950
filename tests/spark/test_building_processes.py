"""A graph built on Spark in processes of its own: with a killed executor, and through Spark Connect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppr.build import build_graph
from ppr.graph import Graph

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.spark, pytest.mark.long]
JOB = """
import sys
from jobs.spark_session import spark_session
session = spark_session(**{sys.argv[1]: sys.argv[2]})
from ppr.spark import build_graph_spark
build_graph_spark(session, sys.argv[3], sys.argv[4], task_edges=20_000)
session.stop()
"""


@pytest.fixture
def edges(tmp_path: Path) -> Path:
    rng = np.random.default_rng(7)
    src, dst = np.char.add("node ", (rng.zipf(1.4, (2, 150_000)) % 40_000).astype(str))
    table = pa.table({"src": src, "dst": dst, "weight": rng.lognormal(size=len(src))})
    pq.write_table(table, tmp_path / "edges.parquet", row_group_size=20_000)
    return tmp_path / "edges.parquet"


def start(session: tuple[str, str], edges: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start a build in the folder of the edges, which it names without that folder."""
    command = [sys.executable, "-c", JOB, *session, edges.name, str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, cwd=edges.parent, start_new_session=True, stderr=subprocess.PIPE
    )


def kill_an_executor(driver: int) -> None:
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # other children of Spark come and go
            if "CoarseGrainedExecutorBackend" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                return
    raise AssertionError("no executor was found")


@pytest.mark.parametrize("stage", ["read/*/*.parquet", "keys/*.parquet", "edges/_SUCCESS", "sorted/*.dst"])
def test_same_store_though_an_executor_is_killed(edges: Path, tmp_path: Path, stage: str) -> None:
    """Killed in the first moments of what follows the files that are waited for."""
    out = tmp_path / "graph"
    with start(("master", "local-cluster[2,1,1024]"), edges, out) as process:
        while process.poll() is None and not any(tmp_path.glob(f".graph.new-*/spill/{stage}")):
            time.sleep(0.01)
        kill_an_executor(process.pid)
        _, trace = process.communicate(timeout=300)
    assert process.returncode == 0, trace.decode()
    assert Graph.open(out).manifest == build_graph(edges, tmp_path / "local").manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edges.parquet", "graph", "local"]


def test_through_spark_connect(edges: Path, tmp_path: Path) -> None:
    for package in ("grpc", "grpc_status", "zstandard"):
        pytest.importorskip(package, reason="the extra 'connect' is not installed")
    with start(("remote", "local[2]"), edges, tmp_path / "graph") as process:
        _, trace = process.communicate(timeout=300)
    assert process.returncode == 0, trace.decode()
    assert Graph.open(tmp_path / "graph").manifest == build_graph(edges, tmp_path / "local").manifest
