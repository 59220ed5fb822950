"""What the steps of a pipeline share."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Literal

import structlog

from jobs.errors import ConfigurationError
from jobs.pipeline.record import Run, output
from jobs.settings import Settings
from ppr.manifest import MANIFEST


@dataclass(frozen=True, slots=True)
class Context:
    """What a step works with.

    Attributes
    ----------
    settings
        All settings.
    run
        The run it belongs to.
    now
        The clock when the command began.
    zone
        Zone that the end of the interval was given in.
    """

    settings: Settings
    run: Run
    now: datetime
    zone: tzinfo = UTC
    log: Any = field(default_factory=structlog.get_logger)

    @property
    def work(self) -> Path:
        """The pipeline's folder."""
        return self.settings.pipeline.work

    def output(self, step: str) -> Path | None:
        """Output that a step of this run made; None where it made none."""
        key = self.run.key(step)
        return None if key is None else output(self.work, step, key)

    def need_output(self, step: str) -> Path | None:
        """Output of a step that has to have been done for this run; None where it had nothing to work with.

        Raises
        ------
        ConfigurationError
            It was not done, or what it made was removed since.
        """
        path = self.output(step)
        if not self.run.done(step) or (path is not None and not path.exists()):
            raise ConfigurationError(
                f"step {step!r} was not done for the run {self.run.name}: "
                "do it first, with the same --config and --until"
            )
        return path

    def need(self, step: str) -> Path:
        """The same of a step that always makes something."""
        path = self.need_output(step)
        assert path is not None
        return path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step.

    Attributes
    ----------
    state
        ``done``; ``kept`` where there was nothing to do; ``skipped`` where it has nothing to work with;
        ``ready`` where what the run waits for is there.
    key
        Of its output, if it has one.
    facts
        What it found, JSON-able.
    """

    state: Literal["done", "kept", "skipped", "ready"]
    key: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def clear_leftovers(out: Path) -> None:
    """Remove what killed runs left beside an output, but what belongs to the output: it is taken up again."""
    for path in out.parent.glob("*"):
        name = path.name.lstrip(".")
        if not (path.name.startswith(".") or ".partial" in path.name) or name.startswith(out.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_finished(store: Path) -> bool:
    """Whether a store is there: it appears in one step, with its manifest."""
    return (store / MANIFEST).is_file()
