"""Partitioned walks on Spark: the same bits as in memory, and the choice between the two."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import MagicMock

import numpy as np
import pytest
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from ppr.errors import ParameterError, ResourceError, StoreError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.machine import memory_limit_bytes
from ppr.params import FingerprintParams
from ppr.partitioned import Progress, Sizes, graph_bytes
from ppr.partitioned.plan import plan_parts
from ppr.partitioned.task import Batch, RoundTask
from ppr.spark import choose_engine, compute_fingerprints_partitioned_spark
from ppr.spark.blocks import slots
from ppr.spark.partitioned import PartTask, _run_round
from tests.oracles.random_graphs import random_graph

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.spark
PARAMS = FingerprintParams(n_walks=150, top_k=20, seed=2)
# Halts one of two executors, and its Python worker, before the fifth round, and kills it in the middle.
JOB = """
import sys, threading
from pathlib import Path
import psutil
from jobs.spark_session import spark_session
from ppr.params import FingerprintParams
from ppr.partitioned import Sizes
from ppr.spark import compute_fingerprints_partitioned_spark

graph, out, scratch = sys.argv[1:]
conf = {"spark.executor.memory": "512m", "spark.local.dir": scratch}
session = spark_session(master="local-cluster[2,1,1024]", conf=conf)
params = FingerprintParams(n_walks=150, top_k=20, seed=2)

def is_executor(process):
    try:
        return any("CoarseGrainedExecutorBackend" in word for word in process.cmdline())
    except psutil.Error:  # it has just ended
        return False

def progress(seen):
    print("round", seen.rounds, flush=True)
    if seen.rounds == 4:
        executor = next(filter(is_executor, psutil.Process().children(recursive=True)))
        processes = [executor, *executor.children(recursive=True)]
        for process in processes:
            process.suspend()
        threading.Timer(1.0, kill, [processes]).start()

def kill(processes):
    for process in processes:
        process.kill()
    written = list(Path(out + ".partial", "rounds", "round-000004").glob("messages*"))
    print("killed", len(written), flush=True)

compute_fingerprints_partitioned_spark(
    session, graph, out, params, sizes=Sizes(6, 120, 4000, 8000), progress=progress
)
session.stop()
"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return random_graph(6, n_nodes=240, weighted=True).save(tmp_path_factory.mktemp("graph") / "a graph")


@pytest.fixture(scope="module")
def expected(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return compute_fingerprints(graph, tmp_path_factory.mktemp("local") / "out", PARAMS, threads=1)


def test_same_bits_as_in_memory(
    spark: SparkSession, graph: Graph, tmp_path: Path, expected: FingerprintStore
) -> None:
    assert graph.path is not None
    seen: list[Progress] = []
    store = compute_fingerprints_partitioned_spark(
        spark,
        graph.path,
        tmp_path / "out with a space",
        PARAMS,
        sizes=Sizes(3, 200, 2000, 10_000),
        cut_share=0.0,
        progress=seen.append,
    )
    assert store.checksum == expected.checksum
    assert seen[-1].batches_done == 2
    assert not list(tmp_path.glob("*.partial"))


def test_killed_executor_changes_nothing(graph: Graph, tmp_path: Path, expected: FingerprintStore) -> None:
    command = [sys.executable, "-c", JOB, str(graph.path), str(tmp_path / "out"), str(tmp_path / "scratch")]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (killed,) = [number for number, line in enumerate(lines) if line.startswith("killed")]
    assert lines[killed - 1] == "round 4"  # rounds done before; the fifth was under way
    assert lines[killed + 1] == "round 5"
    assert int(lines[killed].split()[1]) < 6
    assert FingerprintStore.open(tmp_path / "out").checksum == expected.checksum


def test_the_workers_memory_decides(spark: SparkSession, graph: Graph) -> None:
    machine = memory_limit_bytes()
    whole = choose_engine(spark, graph)
    assert (whole.partitioned, whole.slots, whole.memory_bytes) == (False, 2, machine // 4)
    assert "are within 60% of the" in whole.reason
    # Of a graph, the choice sees its size only.
    graph = replace(graph, indices=np.empty(2_000_000, np.int32), cumulative=None)
    size = graph_bytes(graph)
    just_fits = choose_engine(spark, graph, worker_memory=size)
    assert (just_fits.partitioned, just_fits.memory_bytes) == (False, size)
    small = choose_engine(spark, graph, worker_memory=size - 1)
    assert small.partitioned
    assert "that a worker may hold" in small.reason
    for asked in ("always", "never"):
        choice = choose_engine(spark, graph, worker_memory=size, partitioned=asked)
        assert (choice.partitioned, choice.reason) == (
            asked == "always",
            f"asked for: 'partitioned' is '{asked}'",
        )
    with pytest.raises(ParameterError, match=r"'worker_memory' must be at least \d+ bytes.*\(got 0\)"):
        choose_engine(spark, graph, worker_memory=0)


def test_of_containers_on_one_host_the_smallest_counts(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppr.spark.partitioned.slots", lambda spark: 4)
    offers = [("a", 8 << 30), ("a", 2 << 30), ("a", 8 << 30), ("b", 4 << 30)]
    rows = [SimpleNamespace(host=host, memory=memory) for host, memory in offers]
    session = MagicMock()
    session.range.return_value.mapInArrow.return_value.collect.return_value = rows
    assert choose_engine(session, graph).memory_bytes == (2 << 30) // 2 // 2


@pytest.mark.parametrize("error", [Py4JError("no answer"), PySparkException("no answer")])
def test_sparks_failure_while_slots_are_counted_is_told(graph: Graph, error: Exception) -> None:
    session = MagicMock()
    for result in (session.range().select().where(), session.range().select().distinct()):
        result.collect.side_effect = result.count.side_effect = error
    with pytest.raises(ResourceError, match=r"Spark failed \(no answer\)"):
        choose_engine(session, graph)


def test_slots_are_counted_by_their_rows(spark: SparkSession) -> None:
    assert slots(spark) == spark.sparkContext.defaultParallelism == 2


def test_memory_too_small_for_any_message(spark: SparkSession, graph: Graph, tmp_path: Path) -> None:
    assert graph.path is not None
    with pytest.raises(ParameterError, match=r"'worker_memory' must be at least \d+ bytes.*\(got 9\)"):
        compute_fingerprints_partitioned_spark(spark, graph.path, tmp_path / "out", PARAMS, worker_memory=9)


def a_round(graph: Graph, folder: Path) -> RoundTask:
    folder.mkdir()
    (folder / "round-000000").mkdir()
    np.save(folder / "sources.npy", np.arange(4, dtype=np.int32))
    return RoundTask(str(folder), 0, PARAMS, plan_parts(graph, 2), 1000, (Batch(0, (0, 4), 0),), {}, 0, 5)


def test_worker_says_what_is_not_there(
    spark: SparkSession, graph: Graph, tmp_path: Path, expected: FingerprintStore
) -> None:
    task = a_round(graph, tmp_path / "rounds")
    checksum = expected.graph_checksum
    with pytest.raises(ResourceError, match=r"gone: no such store on the worker .*; put the graph on"):
        _run_round(spark, PartTask(str(tmp_path / "gone"), checksum, None, task))
    with pytest.raises(StoreError, match="checksum on the worker"):
        _run_round(spark, PartTask(str(graph.path), "0" * 64, None, task))
    receipts = _run_round(spark, PartTask(str(graph.path), checksum, None, task))
    assert [receipt.part for receipt in receipts] == [0, 1]
    assert sum(sum(receipt.sent) for receipt in receipts) > 0
    (tmp_path / "rounds").rename(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match=r"rounds: not there on the worker .*; the output must lie"):
        _run_round(spark, PartTask(str(graph.path), checksum, None, task))


def test_damaged_messages_are_told(
    spark: SparkSession, graph: Graph, tmp_path: Path, expected: FingerprintStore
) -> None:
    assert graph.path is not None
    out, sizes = tmp_path / "out", Sizes(2, 240, 2000)

    def damage(seen: Progress) -> None:
        if seen.rounds == 2:
            (path,) = (tmp_path / "out.partial").glob("rounds/round-000001/messages-00001")
            path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(StoreError, match="messages-00001: a file of messages is damaged"):
        compute_fingerprints_partitioned_spark(spark, graph.path, out, PARAMS, sizes=sizes, progress=damage)
    store = compute_fingerprints_partitioned_spark(spark, graph.path, out, PARAMS, sizes=sizes)
    assert store.checksum == expected.checksum
