"""Start and stop of the shared application, with Spark and the fair queue made up."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("pyspark", reason="pyspark is not installed")

from structlog.testing import capture_logs

from jobs.errors import ConfigurationError
from jobs.fairqueue.server import connect, serve
from jobs.fairqueue.server.connect import ConnectService, Operations
from jobs.settings_layers import load_settings
from ppr.errors import ResourceError

NOTHING_LEFT = Operations(frozenset(), frozenset())
QUIET_PORTS = ["server.port=0", "server.status_port=0", "server.stop_timeout_s=5"]


class MadeUpConnect:
    """Stands for Spark Connect: writes down what happens to it."""

    events: list[str]
    signals: list[signal.Signals]  # what this process gets: one while serving, the rest while draining
    drained_s: float = 0.0
    dies: bool = False
    gone: bool = False
    left: connect.Operations = NOTHING_LEFT

    def __init__(self, _: object) -> None:
        pass

    def url(self, host: str) -> str:
        return f"sc://{host}:1"

    def alive(self) -> bool:
        if self.signals:
            os.kill(os.getpid(), self.signals.pop(0))
        return not self.dies

    def drain(
        self, timeout_s: float, waiting: Callable[[int], None], hurried: Callable[[], bool]
    ) -> Operations:
        self.events.append("drain")
        if self.gone:
            raise ConnectionRefusedError
        waiting(1)
        give_up = time.monotonic() + min(timeout_s, self.drained_s)
        while time.monotonic() < give_up and not hurried():
            if self.signals:
                os.kill(os.getpid(), self.signals.pop(0))
            time.sleep(0.01)
        return Operations(frozenset({"slow"}), frozenset()) if hurried() else self.left


@pytest.fixture
def events(monkeypatch) -> list[str]:
    happened: list[str] = []
    spark = SimpleNamespace(version="4", stop=lambda: happened.append("stop"))

    @contextlib.contextmanager
    def install(_: object, **settings: object) -> Iterator[SimpleNamespace]:
        happened.append(f"install {settings['policy']} {settings['weights']}")
        yield SimpleNamespace()
        happened.append("uninstall")

    monkeypatch.setattr(serve, "_HEARTBEAT_S", 0.05)
    monkeypatch.setattr("jobs.spark_session.spark_session", lambda **_: spark)
    monkeypatch.setattr("jobs.fairqueue.install", install)
    monkeypatch.setattr(connect, "ConnectService", MadeUpConnect)
    monkeypatch.setattr(MadeUpConnect, "events", happened, raising=False)
    return happened


def run(monkeypatch, *signals: signal.Signals) -> tuple[int, list[str]]:
    """Exit code and log events of a run that gets signals once it serves."""
    monkeypatch.setattr(MadeUpConnect, "signals", list(signals), raising=False)
    settings = load_settings(assignments=[*QUIET_PORTS, "fairqueue.weights.alice=2"]).settings
    with capture_logs() as logs:
        code = serve.run(settings)
    return code, [entry["event"] for entry in logs]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_stops_step_by_step(events, monkeypatch, number, code):
    before = signal.getsignal(number)
    assert run(monkeypatch, number) == (code, ["ready", "stopping", "waiting for running operations"])
    assert events == ["install uwfq {'alice': 2.0}", "drain", "uninstall", "stop"]
    assert signal.getsignal(number) is before


def test_a_second_signal_waits_no_longer(events, monkeypatch):
    monkeypatch.setattr(MadeUpConnect, "drained_s", 4.0)
    started = time.monotonic()
    code, logs = run(monkeypatch, signal.SIGINT, signal.SIGTERM)
    assert time.monotonic() - started < 3.0
    assert code == 130
    assert logs[-1] == "operations that did not end in time are cancelled"
    assert events[-3:] == ["drain", "uninstall", "stop"]


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (Operations(frozenset("ab"), frozenset()), ["operations that did not end in time are cancelled"]),
        (Operations(frozenset(), frozenset("c")), ["results that no client has collected are dropped"]),
        (
            Operations(frozenset("ab"), frozenset("c")),
            [
                "operations that did not end in time are cancelled",
                "results that no client has collected are dropped",
            ],
        ),
    ],
)
def test_what_a_stop_leaves_undone_is_told_apart(events, monkeypatch, left, told):
    monkeypatch.setattr(MadeUpConnect, "left", left)
    code, logs = run(monkeypatch, signal.SIGTERM)
    assert code == 0
    assert logs[3:] == told


class MadeUpExecutions:
    """Spark Connect's operations, look by look, as (id, has ended, a call is attached)."""

    def __init__(self, *looks: list[tuple[str, bool, bool]]) -> None:
        self.looks = list(looks)
        self.n_shutdowns = 0

    def service(self) -> ConnectService:
        return ConnectService(
            SimpleNamespace(_jvm=SimpleNamespace(**{connect._SERVICE: SimpleNamespace(**{"MODULE$": self})}))
        )

    def listActiveExecutions(self) -> SimpleNamespace:  # noqa: N802  (Spark's name)
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        known = [
            SimpleNamespace(
                operationId=lambda name=name: name,
                terminationReason=lambda ended=ended: SimpleNamespace(isEmpty=lambda: not ended),
                lastAttachedRpcTimeNs=lambda attached=attached: SimpleNamespace(isEmpty=lambda: attached),
            )
            for name, ended, attached in look
        ]
        array = SimpleNamespace(size=lambda: len(known), apply=known.__getitem__)
        return SimpleNamespace(isLeft=lambda: not known, toOption=lambda: SimpleNamespace(get=lambda: array))

    def server(self) -> SimpleNamespace:
        return SimpleNamespace(shutdown=self._shut_down)

    def _shut_down(self) -> None:
        self.n_shutdowns += 1


RUNS, RAN, COLLECTED = ("a", False, True), ("a", True, True), ("a", True, False)


@pytest.mark.parametrize(
    ("looks", "timeout_s", "announced", "left", "seconds"),
    [
        ([[]], 9.0, [], NOTHING_LEFT, 0.0),
        ([[COLLECTED]], 9.0, [], NOTHING_LEFT, 0.0),
        ([[RUNS], [RUNS], [RAN], [COLLECTED]], 9.0, [1], NOTHING_LEFT, 0.03),
        ([[RUNS], [RUNS], [("b", False, True)]], 9.0, [1], NOTHING_LEFT, 0.02),  # b came later
        ([[RAN]], 9.0, [], Operations(frozenset(), frozenset("a")), 0.2),  # its client was killed
        ([[RUNS], *[[RUNS]] * 30, [RAN]], 9.0, [1], Operations(frozenset(), frozenset("a")), 0.5),
        ([[RUNS]], 0.4, [1], Operations(frozenset("a"), frozenset()), 0.4),
        ([[RAN]], 0.0, [], Operations(frozenset(), frozenset("a")), 0.0),
    ],
)
def test_a_stop_waits_for_what_runs_and_briefly_for_its_collection(
    monkeypatch, looks, timeout_s, announced, left, seconds
):
    for name, value in {"_LOOK_S": 0.01, "_COLLECTION_S": 0.2, "_LAST_CALLS_S": 0.0}.items():
        monkeypatch.setattr(connect, name, value)
    executions = MadeUpExecutions(*looks)
    told: list[int] = []
    started = time.monotonic()
    assert executions.service().drain(timeout_s, told.append, lambda: False) == left
    assert seconds <= time.monotonic() - started < seconds + 1.0
    assert told == announced
    assert executions.n_shutdowns == 1


def test_spark_that_ends_by_itself_is_an_error(events, monkeypatch):
    monkeypatch.setattr(MadeUpConnect, "dies", True)
    with pytest.raises(ResourceError, match="Spark has ended by itself"):
        run(monkeypatch)
    assert events[-1] == "stop"


def test_spark_that_got_the_signal_too(events, monkeypatch):
    monkeypatch.setattr(MadeUpConnect, "gone", True)
    code, logs = run(monkeypatch, signal.SIGTERM)
    assert code == 0
    assert logs[-1] == "Spark got the signal too, and ended before its operations"
    assert events[-3:] == ["drain", "uninstall", "stop"]


def test_a_refused_setting_starts_nothing(events):
    settings = load_settings(assignments=[*QUIET_PORTS, "spark.remote=sc://localhost"]).settings
    with pytest.raises(ConfigurationError, match="'remote' does not go with spark-server"):
        serve.run(settings)
    assert events == []
