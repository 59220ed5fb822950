"""What the status page shows: the state of the fair queue at one moment, as plain values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jobs.fairqueue.scheduler import Snapshot

ERRORS = ("callback_errors", "poll_errors", "calls_lost", "save_errors")
"""Counters of what went wrong; alerts look at these."""


class Sample(Protocol):
    """Who held the slots at one moment."""

    @property
    def now_s(self) -> float:
        """Time on the clock of the snapshots, in seconds."""

    @property
    def running(self) -> Mapping[str, int]:
        """Running tasks by user."""


class Queue(Protocol):
    """The part of an installed fair queue that the status page reads."""

    def snapshot(self) -> Snapshot:
        """Give the state of the fair queue."""

    def history(self, seconds: float) -> Sequence[Sample]:
        """Give the samples of the last seconds, oldest first."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts of what the adapter did and of what went wrong; names that end in ``_ns`` are times."""


@dataclasses.dataclass(frozen=True, slots=True)
class Application:
    """What stays the same as long as the application runs.

    Parameters
    ----------
    name
        Name that Spark shows.
    connect_url
        What clients connect to.
    policy
        ``uwfq`` or ``cfq``.
    version
        Version of Spark.
    started_s
        When it started, in seconds since the epoch.
    """

    name: str
    connect_url: str
    policy: str
    version: str
    started_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """One moment of the application.

    Parameters
    ----------
    application
        What does not change.
    uptime_s
        Seconds since the start.
    queue
        State of the fair queue.
    history
        Running tasks by user, as (seconds before now, tasks by user), oldest first.
    counters
        Counts of the adapter.
    """

    application: Application
    uptime_s: float
    queue: Snapshot
    history: tuple[tuple[float, dict[str, int]], ...]
    counters: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {
            **dataclasses.asdict(self),
            "history": [{"age_s": round(age_s, 3), "running": running} for age_s, running in self.history],
        }


def read_status(application: Application, queue: Queue, history_s: float) -> Status:
    """Read the state of ``queue`` and the last ``history_s`` seconds of its history."""
    snapshot = queue.snapshot()
    return Status(
        application,
        time.time() - application.started_s,
        snapshot,
        tuple(
            (max(0.0, snapshot.now_s - sample.now_s), dict(sample.running))
            for sample in queue.history(history_s)
        ),
        read_counters(queue),
    )


def read_counters(queue: Queue) -> dict[str, int]:
    """Read the counters of ``queue``, with a zero for what should never happen and has not."""
    return {**dict.fromkeys(ERRORS, 0), **queue.counters}
