"""Job: the shared application, from its start to its graceful stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog

from jobs.errors import ConfigurationError
from jobs.listening import listen
from jobs.settings import Settings
from ppr.errors import ResourceError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from jobs.fairqueue.server.connect import ConnectService

_HEARTBEAT_S = 1.0


def run(settings: Settings) -> int:
    """Serve until a signal comes.

    Returns
    -------
    int
        Exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Raises
    ------
    ConfigurationError
        A setting breaks its rule, or other machines could connect without a token.
    ResourceError
        A package is missing, a port is taken, the file of estimates cannot be written, Spark does not start,
        or it ends by itself.
    """
    if settings.spark.remote is not None:
        raise ConfigurationError(
            f"[spark] 'remote' does not go with spark-server, which is one (got {settings.spark.remote!r})"
        )
    try:
        import jobs.fairqueue.server.app  # noqa: F401  (needs every package of the extra)
        from jobs.fairqueue.server.auth import check_exposure, shared_token
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        raise ResourceError(f"{package} is not installed: run pip install 'fairpath[server]'") from error
    chosen = settings.server
    token = shared_token(chosen)
    check_exposure(chosen, token)
    _check_estimates(settings.fairqueue.estimates)
    with listen(chosen.status_host, chosen.status_port, "status_port") as status_socket:
        listen(chosen.host, chosen.port, "port").close()  # Spark opens it itself, later
        with _shared_session(settings, token) as spark, _signals() as stop:  # pyspark has a handler, too
            return _serve(settings, spark, token, status_socket, stop)


def _check_estimates(path: Path | None) -> None:
    """Refuse now a file that could not be written later, when costs have been learned."""
    if path is None:
        return
    if path.is_dir():
        raise ResourceError(f"[fairqueue] 'estimates' must be a file (got the folder {path})")
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()  # the file is replaced as a whole
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise ResourceError(f"[fairqueue] 'estimates': cannot write {path} ({reason})") from None


class _Stop:
    """Signals so far: the first asks for a graceful stop, a second for a quick one."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.signals: list[signal.Signals] = []

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.signals.append(signal.Signals(number))
        self._asked.set()

    def wait(self, timeout_s: float) -> bool:
        return self._asked.wait(timeout_s)

    def hurried(self) -> bool:
        return len(self.signals) > 1


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shared_session(settings: Settings, token: str | None) -> Iterator[SparkSession]:
    """Classic session with Spark Connect inside."""
    from py4j.protocol import Py4JError

    from jobs.fairqueue.server.connect import connect_properties, token_for_spark
    from jobs.spark_session import spark_session

    chosen = settings.spark
    properties = connect_properties(settings.server, chosen.conf)
    with token_for_spark(token) as secret:
        spark = spark_session(master=chosen.master, app_name=chosen.app_name, conf={**properties, **secret})
    try:
        yield spark
    finally:
        with contextlib.suppress(Py4JError, OSError):  # the JVM may be gone
            spark.stop()


def _serve(
    settings: Settings, spark: SparkSession, token: str | None, status_socket: socket.socket, stop: _Stop
) -> int:
    from jobs import fairqueue
    from jobs.fairqueue.server.app import create_app, status_page
    from jobs.fairqueue.server.connect import ConnectService
    from jobs.fairqueue.server.status import Application

    log = structlog.get_logger()
    service = ConnectService(spark)
    queue = settings.fairqueue
    with fairqueue.install(
        spark,
        weights=queue.weights,
        default_weight=queue.default_weight,
        default_user=queue.default_user,
        grace_s=queue.grace_s,
        estimates=queue.estimates,
        advisory_task_run_time_s=queue.advisory_task_run_time_s,
        policy=queue.policy,
        poll_s=queue.poll_s,
        history_s=settings.server.history_s,
    ) as installation:
        application = Application(
            name=settings.spark.app_name,
            connect_url=service.url(settings.server.host),
            policy=queue.policy,
            version=spark.version,
            started_s=time.time(),
        )
        app = create_app(
            application,
            installation,
            token=token,
            history_s=settings.server.history_s,
            refresh_s=settings.server.refresh_s,
        )
        with status_page(app, status_socket) as url:
            log.info(
                "ready",
                connect=application.connect_url,
                status=url,
                admits="whoever has the token" if token else "everybody who can connect",
                policy=queue.policy,
            )
            while not stop.wait(_HEARTBEAT_S):
                if not (service.alive() or stop.signals):
                    raise ResourceError("Spark has ended by itself; its own log says why")
            log.info("stopping", signal=stop.signals[0].name)
            _drain(service, settings.server.stop_timeout_s, stop)
    return 130 if stop.signals[0] is signal.SIGINT else 0


def _drain(service: ConnectService, timeout_s: float, stop: _Stop) -> None:
    from py4j.protocol import Py4JError

    log = structlog.get_logger()

    def waiting(running: int) -> None:
        log.info("waiting for running operations", running=running, longest_s=timeout_s)

    try:
        left = service.drain(timeout_s, waiting, stop.hurried)
        if left.running:
            log.warning("operations that did not end in time are cancelled", operations=len(left.running))
        if left.uncollected:
            log.warning("results that no client has collected are dropped", results=len(left.uncollected))
    except (Py4JError, OSError):
        log.warning("Spark got the signal too, and ended before its operations")
