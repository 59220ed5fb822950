from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs import spark_session as module
from jobs.spark_session import session_for_a_job, spark_session
from ppr.errors import ParameterError, ResourceError

ROOT = Path(__file__).resolve().parents[2]

PROBE = """
import json, os, sys
from collections.abc import Iterator
import pyarrow as pa
from jobs.spark_session import spark_session

def worker(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    names = ("NUMBA_NUM_THREADS", "XDG_CACHE_HOME")
    seen = {name: os.environ.get(name) for name in names} | {"python": sys.executable}
    for batch in batches:
        yield pa.RecordBatch.from_pydict({"seen": [json.dumps(seen)] * batch.num_rows})

session = spark_session(**json.loads(sys.argv[1]))
rows = session.range(0, 4, 1, 4).mapInArrow(worker, "seen string").collect()
print(json.dumps([json.loads(row.seen) for row in rows]))
session.stop()
"""


def probe(tmp_path: Path, **arguments: object) -> list[dict[str, str | None]]:
    """What Python workers see of a session made in a process of its own, which must print nothing else."""
    environment = {
        "HOME": os.environ["HOME"],
        "PATH": "/nowhere:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROBE, json.dumps(arguments)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert len(seen) == 4
    return seen


@pytest.mark.spark
def test_workers_of_a_local_session(tmp_path: Path) -> None:
    for seen in probe(tmp_path, master="local[2]"):
        assert seen == {"NUMBA_NUM_THREADS": "1", "XDG_CACHE_HOME": None, "python": sys.executable}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spark
def test_workers_of_a_cluster(tmp_path: Path) -> None:
    conf = {"spark.task.cpus": "2"}
    for seen in probe(tmp_path, master="local-cluster[1,2,1024]", conf=conf):
        expected = {"NUMBA_NUM_THREADS": "2", "XDG_CACHE_HOME": "cache", "python": sys.executable}
        assert seen == expected


@pytest.mark.spark
def test_active_session_is_taken_as_it_is(spark: object) -> None:
    assert spark_session(conf={"spark.sql.shuffle.partitions": "77"}) is spark
    assert spark.conf.get("spark.sql.shuffle.partitions") == "3"  # type: ignore[attr-defined]


@pytest.fixture
def no_active_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)


@pytest.mark.usefixtures("no_active_session")
def test_nobody_listens_at_the_remote_address() -> None:
    with socket.create_server(("localhost", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    with pytest.raises(ResourceError, match=f"no Spark Connect server answers at localhost:{port}"):
        spark_session(remote=f"sc://localhost:{port}/;user_id=alice;token=hush")


@pytest.mark.usefixtures("no_active_session")
def test_a_remote_that_is_no_connect_url() -> None:
    with pytest.raises(ParameterError, match="'remote' is not a Spark Connect URL"):
        spark_session(remote="http://localhost:1")


def test_master_and_remote_exclude_each_other() -> None:
    with pytest.raises(ParameterError, match="'master' and 'remote' exclude each other"):
        spark_session(master="local[1]", remote="sc://localhost")


def test_without_pyspark_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(ResourceError, match=r"pip install 'fairpath\[spark\]'"):
        spark_session()


@pytest.mark.parametrize(
    ("master", "submitted", "expected"),
    [
        (None, False, {"spark.master": "local[*]"}),
        ("local[3]", False, {"spark.master": "local[3]"}),
        ("spark://host:7077", False, {"spark.executorEnv.XDG_CACHE_HOME": "cache"}),
        (None, True, {"spark.executorEnv.XDG_CACHE_HOME": "cache"}),
    ],
)
def test_settings_of_a_classic_session(
    monkeypatch: pytest.MonkeyPatch, master: str | None, submitted: bool, expected: dict[str, str]
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    if submitted:
        monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")
    settings = module._classic_settings(master, {"spark.ui.enabled": "true"})
    assert expected.items() <= settings.items()
    assert settings["spark.ui.enabled"] == "true"
    assert ("spark.master" in settings) == (not submitted)
    local = settings.get("spark.master", "").startswith("local[")
    assert ("spark.executorEnv.XDG_CACHE_HOME" in settings) == (not local)


@pytest.mark.spark
def test_a_job_leaves_the_active_session_running(spark: SparkSession) -> None:
    with session_for_a_job(app_name="another") as session:
        assert session is spark
    assert spark.range(3).count() == 3
