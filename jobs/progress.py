"""Progress: a bar where a person watches, a log line now and then where none does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Protocol

import structlog

LOG_EVERY_S = 10.0


class Update(Protocol):
    """What a job calls when it has got on."""

    def __call__(self, stage: str, done: int, total: int | None, note: str = "") -> None:
        """Show how far a stage is; ``total`` is None where the end is not known, ``note`` may change."""


_SHOWN: ContextVar[Callable[[], AbstractContextManager[Update]] | None] = ContextVar("shown", default=None)


@contextmanager
def show_progress(*, lines: bool = True) -> Iterator[Update]:
    """Give the callback; ``lines`` is whether to log where no person watches.

    Within another one that shows bars, it adds to them until it ends: a screen has room for one.
    """
    if (shown := _SHOWN.get()) is not None:
        with shown() as update:
            yield update
        return
    unwatched = _lines() if lines else nullcontext(_silent)
    with _bars() if sys.stderr.isatty() else unwatched as update:
        yield update


def _silent(stage: str, done: int, total: int | None, note: str = "") -> None:
    """Show nothing."""


@contextmanager
def _bars() -> Iterator[Update]:
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

        @contextmanager
        def stages(*, last: bool) -> Iterator[Update]:
            tasks: dict[str, TaskID] = {}

            def update(stage: str, done: int, total: int | None, note: str = "") -> None:
                if stage not in tasks:
                    tasks[stage] = progress.add_task(stage, total=total)
                shown = f"{stage} {note}".strip()
                progress.update(tasks[stage], completed=done, total=total, description=shown)

            try:
                yield update
            finally:
                for task in () if last else tasks.values():
                    progress.remove_task(task)

        token = _SHOWN.set(partial(stages, last=False))
        try:
            with stages(last=True) as update:
                yield update
        finally:
            _SHOWN.reset(token)


@contextmanager
def _lines(clock: Callable[[], float] = time.monotonic) -> Iterator[Update]:
    log = structlog.get_logger()
    last = clock()

    def update(stage: str, done: int, total: int | None, note: str = "") -> None:
        nonlocal last
        if clock() - last >= LOG_EVERY_S:
            last = clock()
            log.info("progress", stage=stage, done=done, total=total, **({"note": note} if note else {}))

    yield update
