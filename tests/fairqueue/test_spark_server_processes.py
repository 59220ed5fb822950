"""One shared application and its clients, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "correct-horse-battery-staple"
pytestmark = pytest.mark.spark

CLIENT = """
import os, sys, time
from pyspark.sql import SparkSession
from pyspark.sql.functions import udf
url, n_tasks, task_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
spark = SparkSession.builder.remote(url).getOrCreate()

@udf("long")
def slowly(number):
    time.sleep(task_s)
    return number

rows = spark.range(0, n_tasks, 1, n_tasks).select(slowly("id")).collect()
print(sum(row[0] for row in rows), flush=True)
os._exit(0)  # a client whose server is gone tries for minutes to release what it has
"""


def environment(**more: str) -> dict[str, str]:
    hidden = ("FAIRPATH_", "SPARK_CONNECT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture
def clients() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Clients by name; those that still run at the end are killed."""
    started: dict[str, subprocess.Popen[str]] = {}
    yield started
    for process in started.values():
        if process.poll() is None:
            process.kill()
            process.communicate()


class Server:
    """A running ``fairpath spark-server``."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        ready = wait_for(lambda: self.event("ready"), 90, self._explain)
        self.url: str = ready["connect"]
        self._status_url: str = ready["status"]

    def event(self, name: str) -> dict[str, Any] | None:
        """First log line of this kind."""
        assert self.process.poll() in (None, 0), self.log.read_text()
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return next((line for line in lines if line["event"] == name), None)

    def get(self, path: str, token: str = TOKEN) -> str:
        request = urllib.request.Request(
            self._status_url + path, headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def users(self) -> dict[str, dict[str, Any]]:
        return {user["user"]: user for user in json.loads(self.get("status.json"))["queue"]["users"]}

    def _explain(self) -> str:
        return self.log.read_text()


def wait_for(condition: Callable[[], Any], timeout_s: float, explain: Callable[[], object]) -> Any:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        if value := condition():
            return value
        time.sleep(0.1)
    pytest.fail(f"nothing after {timeout_s} s: {explain()}")


def watch(
    server: Server, clients: list[subprocess.Popen[str]], timeout_s: float
) -> dict[str, dict[str, Any]]:
    """The state in which each user had had most service, until all clients have ended."""
    seen: dict[str, dict[str, Any]] = {}
    give_up = time.monotonic() + timeout_s
    while any(process.poll() is None for process in clients) and time.monotonic() < give_up:
        for name, user in server.users().items():
            if name not in seen or user["service_core_s"] >= seen[name]["service_core_s"]:
                seen[name] = user
        time.sleep(0.1)
    return seen


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    log = folder / "server.log"
    assignments = ("fairqueue.weights.alice=2", f"fairqueue.estimates={folder / 'estimates.json'}")
    command = [
        sys.executable,
        "-m",
        "jobs.cli",
        "spark-server",
        "--master",
        "local[2]",
        "--log-format",
        "json",
    ]
    command += ["--port", "0", "--status-port", "0"]
    command += [part for assignment in assignments for part in ("--set", assignment)]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, cwd=folder, env=environment(FAIRPATH_SERVER__TOKEN=TOKEN), stderr=stderr
        ) as process,
    ):
        try:
            yield Server(process, log)
        finally:
            if process.poll() is None:
                process.kill()


def client(server: Server, user: str, n_tasks: int, task_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, f"{server.url}/;user_id={user}", str(n_tasks), str(task_s)],
        env=environment(SPARK_CONNECT_AUTHENTICATE_TOKEN=TOKEN),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fingerprints(
    server: Server, user: str, graph: Path, out: Path, token: str = TOKEN, host: str = "localhost"
) -> subprocess.Popen[str]:
    url = server.url.replace("localhost", host)
    command = [sys.executable, "-m", "jobs.cli", "fingerprints", str(graph), "--out", str(out)]
    command += ["--n-walks", "100", "--top-k", "20", "--remote", f"{url}/;user_id={user}"]
    return subprocess.Popen(
        command,
        env=environment(SPARK_CONNECT_AUTHENTICATE_TOKEN=token),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    rng = np.random.default_rng(6)
    indices = np.concatenate([np.sort(rng.choice(400, 5, replace=False)) for _ in range(400)])
    return Graph.from_arrays(np.arange(0, 2001, 5), indices, rng.random(2000) + 0.1).save(tmp_path / "graph")


@pytest.mark.long
def test_two_users_share_one_application(
    graph: Graph, clients: dict[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    for package in ("starlette", "uvicorn", "prometheus_client", "grpc", "grpc_status", "zstandard"):
        pytest.importorskip(package, reason="the extra 'server' is not installed")
    assert graph.path is not None
    out = tmp_path / "fingerprints"
    with serving(tmp_path) as server:
        # Side by side: fairpath's own command, any PySpark client, and one with a wrong token.
        clients |= {
            "alice": fingerprints(server, "alice", graph.path, out),
            "bob": client(server, "bob", 6, 0.3),
            "stranger": fingerprints(server, "alice", graph.path, tmp_path / "no", token=TOKEN + "x"),
            "numeric": fingerprints(server, "alice", graph.path, tmp_path / "no", host="127.0.0.1"),
        }
        seen = watch(server, list(clients.values()), 90)
        results = {name: process.communicate(timeout=10) for name, process in clients.items()}
        alice, bob, stranger, numeric = clients.values()
        assert alice.returncode == 0, results["alice"][1]
        assert bob.returncode == 0, results["bob"][1]
        assert results["bob"][0].split() == ["15"]
        assert stranger.returncode == 3
        assert "Spark does not start at sc://" in results["stranger"][1]
        assert "(Invalid authentication token)" in results["stranger"][1]
        assert numeric.returncode == 3
        assert "no TLS at 127.0.0.1:" in results["numeric"][1]
        local = compute_fingerprints(graph, tmp_path / "local", FingerprintParams(n_walks=100, top_k=20))
        assert FingerprintStore.open(out, graph=graph).checksum == local.checksum

        assert (seen["alice"]["weight"], seen["bob"]["weight"]) == (2.0, 1.0)
        assert seen["alice"]["service_core_s"] > 0
        assert 0.3 <= seen["bob"]["service_core_s"] < 30.0  # up to six tasks of 0.3 s, and Python's start
        assert "bob" in server.get("")
        assert "fairpath_fairqueue_slots 2.0" in server.get("metrics")
        counters = json.loads(server.get("status.json"))["counters"]
        assert counters["task_sets"] > 0
        assert not any(counters[name] for name in counters if name.endswith(("_errors", "_lost")))
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            server.get("status.json", token=TOKEN + "x")
        refused.value.close()

        driver = psutil.Process(server.process.pid)
        (jvm,) = (process for process in driver.children() if process.name() == "java")
        assert not any(TOKEN in part for process in (driver, jvm) for part in process.cmdline())

        # A stop while bob runs something: it ends, and bob gets the result. Carol never collects hers.
        clients |= {"killed": client(server, "carol", 2, 0.5), "last": client(server, "bob", 2, 2.0)}
        for user in ("carol", "bob"):
            wait_for(
                lambda user=user: server.users().get(user, {}).get("unfinished_jobs"),
                30,
                lambda: server.get("status.json"),
            )
            if user == "carol":
                clients["killed"].kill()
                clients["killed"].communicate(timeout=10)
        server.process.send_signal(signal.SIGTERM)
        assert clients["last"].communicate(timeout=30)[0].split() == ["1"]
        collected_s = time.monotonic()
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - collected_s < 15  # far less than the longest wait of 30 s
        assert server.event("waiting for running operations")
        dropped = server.event("results that no client has collected are dropped")
        assert dropped is not None
        assert dropped["results"] == 1
        log = server.log.read_text()
    assert TOKEN not in log
    assert "Traceback" not in log
    assert "cancelled" not in log
    assert "SESSION_CLOSED" not in log
    assert (tmp_path / "estimates.json").exists()
    jvm.wait(timeout=10)
