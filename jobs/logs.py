"""Logs: structured lines on standard error, for people or for machines."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from jobs.settings import redact


def configure_logs(
    level: Literal["debug", "info", "warning", "error"], form: Literal["text", "json"]
) -> None:
    """Send all log lines of at least ``level`` to standard error.

    Lines of libraries that log through :mod:`logging` take the same road, from warnings on. Values are
    redacted: a secret never reaches a log.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _hide_secrets,
    ]
    if form == "json":
        renderer: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def _hide_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    return {name: redact(value, name=name) for name, value in event.items()}


def log_failure(error: Exception, code: int) -> None:
    """Say on standard error why the program stops, in the form of the other lines."""
    message = str(error) or type(error).__name__
    if isinstance(structlog.get_config()["processors"][-1], structlog.processors.JSONRenderer):
        structlog.get_logger().error(message, error=type(error).__name__, exit_code=code)
    else:
        sys.stderr.write(f"fairpath: {message}\n")
