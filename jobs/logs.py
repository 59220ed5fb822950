"""Logs: structured lines on standard error, for people or for machines."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, TextIO, cast

import structlog

from jobs.settings_layers import redact


def configure_logs(
    level: Literal["debug", "info", "warning", "error"], form: Literal["text", "json"]
) -> None:
    """Send all log lines of at least ``level`` to standard error.

    Lines of libraries that log through :mod:`logging` take the same road, from warnings on. Values are
    redacted: a secret never reaches a log.
    """
    stderr = cast("TextIO", _StandardError())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
    ]
    if form == "json":
        renderer: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Tracebacks with the values of variables are long, and may show secrets.
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(stderr),  # a line is one write: workers share the stream
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    handler.setLevel(root.level)  # for libraries that give their own loggers a lower one


class _StandardError:
    """Standard error as it is when a line is written: bars redirect it, so that lines come above them."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {name: redact(value, name=name) for name, value in event.items()}


def log_failure(error: Exception, code: int) -> None:
    """Say on standard error why the program stops, in the form of the other lines."""
    _log_end(redact(str(error)) or type(error).__name__, code, error=type(error).__name__)


def log_interrupt() -> None:
    """Say on standard error that a resumable job was interrupted."""
    _log_end("interrupted; the same command continues where it stopped", 130)


@contextmanager
def plain_interrupts() -> Iterator[None]:
    """Let SIGINT and SIGTERM do no more than raise :class:`KeyboardInterrupt`, in a job that uses Spark.

    pyspark's own handler calls the JVM from within the call that the signal interrupted, which fails with a
    long log; stopping the session cancels its jobs too.
    """

    def interrupt(*_: object) -> NoReturn:
        logging.getLogger().setLevel(logging.CRITICAL + 1)  # py4j logs the interrupt, through the root
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def tidy_termination() -> Iterator[None]:
    """Let SIGTERM raise :class:`KeyboardInterrupt`, as SIGINT does: a job leaves nothing half-written.

    Services have handlers of their own.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _log_end(message: str, code: int, **fields: str) -> None:
    if isinstance(structlog.get_config()["processors"][-1], structlog.processors.JSONRenderer):
        structlog.get_logger().error(message, **fields, exit_code=code)
    else:
        sys.stderr.write(f"fairpath: {message}\n")
