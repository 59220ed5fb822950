"""The fair queue in Spark applications of their own: Connect clients, retries, lost executors, callbacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.spark
PATIENCE_S = 90

START = """
import json, os, signal, socket, sys, threading, time
from pathlib import Path
from jobs import fairqueue
from jobs.spark_session import spark_session

def say(**facts):
    print(json.dumps(facts), flush=True)

def wait_until(condition, seconds=30.0):
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it has not happened"
        time.sleep(0.02)
"""

CALLBACK_DIES = (
    START
    + """
spark = spark_session(master="local[2]")
queue = fairqueue.install(spark, poll_s=0.2)
spark.range(0, 8, 1, 2).count()
before = queue.counters["task_sets"]
server = spark.sparkContext._gateway._callback_server
server.server_socket.shutdown(socket.SHUT_RDWR)
server.server_socket.close()
for connection in list(server.connections):
    connection.socket.shutdown(socket.SHUT_RDWR)
rows = [spark.range(0, 8, 1, 2).count() for _ in range(5)]
wait_until(lambda: not queue.installed)
rows.append(spark.range(0, 8, 1, 2).count())
lost = queue.counters["calls_lost"]
spark.range(0, 8, 1, 2).count()
after = queue.counters["task_sets"]
say(before=before, rows=rows, lost=lost, after=after, none=fairqueue.installation_of(spark))
spark.stop()
"""
)

RETRIES = (
    START
    + """
spark = spark_session(master="local[2,3]")
queue = fairqueue.install(spark, poll_s=0.05, idle_s=0.3)
folder = sys.argv[1]

def fail_once(batches):
    from pathlib import Path
    from pyspark import TaskContext
    import time
    time.sleep(0.2)
    mark = Path(folder) / str(TaskContext.get().partitionId())
    if not mark.exists():
        mark.touch()
        raise ValueError("the first attempt fails on purpose")
    yield from batches

with fairqueue.job(spark, user="alice", job_class="retried"):
    rows = len(spark.range(0, 4, 1, 2).mapInArrow(fail_once, "id long").collect())
wait_until(lambda: queue.sizes() == {"jobs": 0, "task_sets": 0})
estimate = queue._estimator.estimate("alice: retried")
say(rows=rows, estimate=estimate, errors=queue.counters.get("callback_errors", 0))
spark.stop()  # with the queue still in
wait_until(lambda: "fairqueue" not in {thread.name for thread in threading.enumerate()})
say(installed=queue.installed, errors=queue.counters.get("restore_errors", 0))
"""
)

EXECUTORS = (
    START
    + """
spark = spark_session(master="local-cluster[2,1,1024]", conf={"spark.executor.memory": "512m"})
with fairqueue.install(spark, poll_s=0.1) as queue:
    wait_until(lambda: queue.snapshot().slots == 2)
    spark.range(0, 8, 1, 4).count()
    spark.sparkContext._jsc.sc().killExecutor("0")
    wait_until(lambda: queue.snapshot().slots == 1)
    spark.range(0, 8, 1, 4).count()
    say(slots=queue.snapshot().slots, errors=queue.counters.get("poll_errors", 0))
spark.stop()
"""
)

SERVER = (
    START
    + """
spark = spark_session(master="local[2]", conf={
    "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
    "spark.connect.grpc.binding.address": "127.0.0.1",
    "spark.connect.grpc.binding.port": "0",
})
service = getattr(spark._jvm, "org.apache.spark.sql.connect.service.SparkConnectService$")
queue = fairqueue.install(spark, poll_s=0.05, idle_s=7.0)
say(port=getattr(service, "MODULE$").localPort())
for line in sys.stdin:
    command = line.strip()
    if command == "wait until idle":
        wait_until(lambda: queue.sizes() == {"jobs": 0, "task_sets": 0})
    elif command.startswith("wait for stages "):
        user, stages = command.split()[3:]
        def waiting():
            return sum(job.stages for job in queue.snapshot().jobs if job.user == user)
        wait_until(lambda: waiting() >= int(stages))
    elif command.startswith("wait for the end of "):
        user = command.split()[-1]
        wait_until(
            lambda: all(job.state == "finished" for job in queue.snapshot().jobs if job.user == user), 4.0
        )
    jobs = [[job.user, job.job_class, job.estimated_core_s] for job in queue.snapshot().jobs]
    say(jobs=jobs, counters=queue.counters)
queue.uninstall()
spark.stop()
"""
)

CLIENT = """
import sys, threading, time
from contextlib import nullcontext
from pyspark.sql import SparkSession
from jobs import fairqueue
port, user, n_jobs, tasks, seconds, declared, log = sys.argv[1:]
spark = SparkSession.builder.remote(f"sc://127.0.0.1:{port}/;user_id={user}").create()
if user == "carol":
    forged = "SparkConnect_OperationTag_User_bob_Session_{0}_Operation_{0}".format(spark.session_id)
    spark.conf.set("spark.job.tags", forged)

def work(batches):
    import time
    time.sleep(float(seconds))
    yield from batches

def run():
    begun = time.monotonic()
    described = fairqueue.job(spark, cost_core_s=float(declared), job_class="sleep")
    with nullcontext() if user == "dave" else described:
        spark.range(0, int(tasks), 1, int(tasks)).mapInArrow(work, "id long").collect()
    with open(log, "a") as file:
        file.write(f"{user} {time.monotonic() - begun}\\n")

threads = [threading.Thread(target=run) for _ in range(int(n_jobs))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
spark.stop()
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def facts(script: str, *arguments: object) -> list[dict[str, Any]]:
    """What a script says, one JSON object a line."""
    with process(script, *arguments) as child:
        output, _ = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]  # the rest is log


@pytest.mark.long
def test_jobs_go_on_when_the_callback_server_dies() -> None:
    (found,) = facts(CALLBACK_DIES)
    assert found["before"] >= 2
    assert found["rows"] == [8] * 6
    assert found["lost"] >= 1
    assert found["after"] == found["before"]
    assert found["none"] is None


@pytest.mark.long
def test_retried_tasks_count_and_a_stopped_application_ends_the_queue(tmp_path: Path) -> None:
    found, stopped = facts(RETRIES, tmp_path)
    assert found["rows"] == 4
    assert found["estimate"] >= 0.8  # two tasks of 0.2 s, each run twice, and Python's start
    assert found["errors"] == 0
    assert stopped == {"installed": False, "errors": 0}


@pytest.mark.long
def test_slots_follow_the_executors() -> None:
    assert facts(EXECUTORS) == [{"slots": 1, "errors": 0}]


@pytest.mark.long
def test_two_connect_clients(tmp_path: Path) -> None:
    for package in ("grpc", "grpc_status", "zstandard"):
        pytest.importorskip(package, reason="the extra 'connect' is not installed")
    with process(SERVER) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(command: str) -> dict[str, Any]:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(command + "\n")
            server.stdin.flush()
            answer: dict[str, Any] = json.loads(server.stdout.readline())
            return answer

        port = json.loads(server.stdout.readline())["port"]
        log = tmp_path / "log"
        with process(CLIENT, port, "alice", 6, 6, 0.3, 2.0, log) as alice:
            jobs = ask("wait for stages alice 6")["jobs"]
            assert jobs == [["alice", "alice: sleep", 2.0]] * 6
            with process(CLIENT, port, "bob", 1, 2, 0.3, 0.6, log) as bob:
                bob.wait(PATIENCE_S)
            alice.wait(PATIENCE_S)
        users = [line.split()[0] for line in log.read_text().splitlines()]
        assert sorted(users) == ["alice"] * 6 + ["bob"]
        assert "bob" in users[:4]  # alice's flood of 6 s began before bob's process did

        with process(CLIENT, port, "dave", 1, 4, 0.3, 0.0, log) as dave:  # he says nothing of his job
            jobs = ask("wait for stages dave 1")["jobs"]
            assert ["dave", "dave: query", 2.0] in jobs
            dave.wait(PATIENCE_S)
        ask("wait for the end of dave")  # it is known, for the queue would wait longer

        with process(CLIENT, port, "carol", 3, 4, 0.2, 2.0, log):  # she poses as bob
            jobs = ask("wait for stages carol 3")["jobs"]
            assert {user for user, _, _ in jobs} >= {"carol"}
            assert sum(user == "bob" for user, _, _ in jobs) <= 1  # bob's own
        # The client is killed; what it has submitted ends by itself.
        counters = ask("wait until idle")["counters"]
        assert not {"callback_errors", "poll_errors", "calls_lost"} & counters.keys()
