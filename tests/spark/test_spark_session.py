from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from py4j.protocol import Py4JError
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

LOGS = """
from jobs.spark_session import spark_session
session = spark_session(master="local[1]")
jvm = session._jvm
log = jvm.org.apache.logging.log4j.LogManager
log.getLogger("org.example.Named").error("first", jvm.java.lang.RuntimeException("its cause"))
log.getLogger("org.example.Named").error("second")
# What Connect answers its clients, over and over when they have gone.
log.getLogger("org.apache.spark.sql.connect.utils.ErrorUtils").error("session closed")
log.getLogger("org.example.Named").error("third")
session.stop()
"""


def run_quietly(tmp_path: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with nothing in the environment that it could lean on."""
    environment = {
        "HOME": os.environ["HOME"],
        "PATH": "/nowhere:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def probe(tmp_path: Path, **arguments: object) -> list[dict[str, str | None]]:
    """What Python workers see of a session made in a process of its own, which must print nothing else."""
    done = run_quietly(tmp_path, PROBE, json.dumps(arguments))
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert len(seen) == 4
    return seen


@pytest.mark.long
@pytest.mark.spark
def test_workers_of_a_local_session(tmp_path: Path) -> None:
    for seen in probe(tmp_path, master="local[2]"):
        assert seen == {"NUMBA_NUM_THREADS": "1", "XDG_CACHE_HOME": None, "python": sys.executable}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spark
def test_every_event_of_spark_is_a_line_of_its_own(tmp_path: Path) -> None:
    lines = run_quietly(tmp_path, LOGS).stderr.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ERROR Named: ", line) for line in lines)
    assert [line.partition("Named: ")[2] for line in lines] == ["first: its cause", "second", "third"]


@pytest.mark.long
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
def test_no_master_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [listening.getsockname()[1] for listening in (one, other)]
    master = "spark://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    with pytest.raises(ResourceError, match=f"no Spark master answers at {master} .*{ports[1]}: .*refused"):
        spark_session(master=master)


@pytest.mark.usefixtures("no_active_session")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (": org.apache.spark.SparkException: Could not parse it: 'x'", "Could not parse it: 'x'"),
        (
            ": java.lang.X: Cannot call methods on a stopped SparkContext.",
            "it stopped at once; its log says why",
        ),
        ("", "An error occurred"),
    ],
)
def test_what_java_says_of_a_session_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    def failing(*_: object) -> None:
        raise Py4JError(f"An error occurred\n{text}\n\tat org.apache")

    monkeypatch.setattr(module, "_start", failing)
    with pytest.raises(ResourceError) as found:
        spark_session(master="spark:x")
    assert str(found.value) == f"Spark does not start at spark:x ({reason})"


@pytest.fixture
def plain_server() -> Iterator[int]:
    """Port of a peer that answers a TLS handshake in plain HTTP/2, as Spark Connect does."""
    settings_frame = bytes(9)
    settings_frame = settings_frame[:3] + b"\x04" + settings_frame[4:]
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    if connection.recv(1024):
                        connection.sendall(settings_frame)

    thread = threading.Thread(target=answer)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(timeout=5)


@pytest.mark.usefixtures("no_active_session")
@pytest.mark.parametrize("parameters", ["token=hush", "use_ssl=true", "use_ssl=true;token=hush"])
def test_a_token_for_an_address_without_tls(plain_server: int, parameters: str) -> None:
    expected = f"no TLS at 127.0.0.1:{plain_server}.*: use localhost or a TLS proxy"
    with pytest.raises(ResourceError, match=expected) as refused:
        spark_session(remote=f"sc://127.0.0.1:{plain_server}/;{parameters}")
    assert "hush" not in str(refused.value)


@pytest.mark.usefixtures("no_active_session")
def test_a_token_of_the_environment_for_an_address_without_tls(
    plain_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", "hush")
    with pytest.raises(ResourceError, match="no TLS at"):
        spark_session(remote=f"sc://127.0.0.1:{plain_server}")


@pytest.mark.parametrize(
    ("remote", "refused"),
    [
        ("sc://127.0.0.1:{}", False),
        ("sc://localhost:{}/;token=hush", False),
        ("sc://localhost:{}/;use_ssl=true", True),
    ],
)
def test_tls_is_asked_for_where_pyspark_takes_it(
    plain_server: int, monkeypatch: pytest.MonkeyPatch, remote: str, refused: bool
) -> None:
    monkeypatch.delenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", raising=False)
    with pytest.raises(ResourceError) if refused else nullcontext():
        module._check_reachable(remote.format(plain_server))


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
