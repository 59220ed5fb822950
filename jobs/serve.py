"""Job: the router as a service, from its checks to its graceful stop."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing.process
import os
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import structlog

from jobs.listening import listen
from jobs.logs import configure_logs
from jobs.settings import LogSettings, Settings
from ppr.errors import ResourceError
from router.service.settings import ServiceSettings, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from router.encoders import EncoderIdentity

_LOOK_S = 0.05
_ANSWER_S = 5.0
_M_ARENA_MAX = -8  # of malloc.h


def run(releases: Path, settings: Settings) -> int:
    """Serve until a signal comes.

    Returns
    -------
    int
        Exit code: 0 after SIGTERM, 130 after Ctrl-C, 3 where the service does not start.

    Raises
    ------
    ReleaseError
        There is no current release, or it is damaged.
    FeedbackStoreError
        The store cannot be opened.
    ParameterError
        A setting does not go with the others.
    ResourceError
        A package is missing, or the port is taken.
    """
    try:
        import uvicorn

        from router.service.service import check_start
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "jobs", "ppr", "router"):  # a defect, not a package that is missing
            raise
        raise ResourceError(f"{package} is not installed: run pip install 'fairpath[serve]'") from error
    chosen = ServiceSettings.of(releases, settings.serve)
    with listen(chosen.host, chosen.port, "port", "serve") as listening, _signals() as received:
        start = check_start(chosen)
        config = uvicorn.Config(
            partial(make_app, chosen, settings.log, start.encoder),
            factory=True,
            workers=chosen.workers,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=chosen.trusted_proxies is not None,
            forwarded_allow_ips=chosen.trusted_proxies,
            timeout_graceful_shutdown=round(chosen.stop_timeout_s),
        )
        _tell_when_ready(chosen, listening, _admits(chosen, any_keys=start.any_keys))
        with _shared_metrics(chosen.workers):
            try:
                _serve(config, listening)
            except SystemExit as stopped:  # uvicorn's way to say that the application has not started
                return int(stopped.code or 0)
    return 130 if received == [signal.SIGINT] else 0


def make_app(settings: ServiceSettings, log: LogSettings, encoder: EncoderIdentity) -> ASGIApp:
    """Application of one worker, which is a process of its own where there are several.

    The encoder is that of the start, for workers that are started again later too: they refuse the releases
    that the others refuse.
    """
    configure_logs(log.level, log.format)
    _share_arenas()
    if (supervisor := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(supervisor,), daemon=True).start()
    from router.service.app import create_app

    return create_app(settings, encoder=encoder)


def _share_arenas() -> None:
    """Let all threads share two of malloc's arenas, where it is glibc's.

    By default each thread keeps what it has freed to itself: with a service's threads a third of its memory.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _end_with(supervisor: multiprocessing.process.BaseProcess) -> None:
    """End this worker gracefully when its supervisor is gone, even if that was killed."""
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _serve(config: Any, listening: socket.socket) -> None:
    from uvicorn import Server
    from uvicorn.supervisors import Multiprocess

    if config.workers > 1:
        Multiprocess(config, [listening]).run()
    else:
        Server(config).run([listening])


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Signals that ended the service: uvicorn takes them, and sends its own process one again at the end."""
    received: list[signal.Signals] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """Let the workers that are started within keep their metrics where each can read all."""
    from router.service.metrics import MULTIPROCESS_VARIABLE

    if workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="fairpath-metrics-") as folder:
        os.environ[MULTIPROCESS_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[MULTIPROCESS_VARIABLE]


def _tell_when_ready(settings: ServiceSettings, listening: socket.socket, admits: str) -> None:
    """Log one line, from a thread, once the service answers that it is ready."""
    host, port = settings.host, listening.getsockname()[1]
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    threading.Thread(
        target=_wait_until_ready,
        args=(settings.workers, _url(asked, port), _url(host, port), admits),
        daemon=True,
    ).start()


def _wait_until_ready(workers: int, asked: str, shown: str, admits: str) -> None:
    while (release := _ready_release(f"{asked}/readyz")) is None:
        time.sleep(_LOOK_S)
    structlog.get_logger().info("ready", url=shown, release=release, workers=workers, admits=admits)


def _ready_release(url: str) -> str | None:
    """Release of a service that is ready; None where it is not, yet."""
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:
            return str(json.load(answer)["release"])
    except (OSError, ValueError, urllib.error.URLError):
        return None


def _admits(settings: ServiceSettings, *, any_keys: bool) -> str:
    """Whose requests are answered, in words."""
    if settings.auth == "off":
        return "everybody on this machine"
    if settings.auth == "auto" and is_loopback(settings.host) and not any_keys:
        return "everybody on this machine, until a key is made; then whoever has one"
    return "whoever has an API key"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
