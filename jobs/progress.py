"""Progress: a bar where a person watches, a log line now and then where none does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

LOG_EVERY_S = 10.0


@contextmanager
def show_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Give a callback ``(stage, done, total)``; ``total`` is None where the end is not known."""
    with _bars() if sys.stderr.isatty() else _lines() as update:
        yield update


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int | None], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def _lines(clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[str, int, int | None], None]]:
    log = structlog.get_logger()
    last = clock()

    def update(stage: str, done: int, total: int | None) -> None:
        nonlocal last
        if clock() - last >= LOG_EVERY_S:
            last = clock()
            log.info("progress", stage=stage, done=done, total=total)

    yield update
