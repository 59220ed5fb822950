"""State of the fair queue at one time, in plain values: ``dataclasses.asdict`` of it is JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs.fairqueue.estimates import EstimateError


@dataclass(frozen=True, slots=True)
class UserSnapshot:
    """A user's account; virtual times are in core-seconds per unit of weight."""

    user: str
    weight: float
    backlogged: bool
    virtual_time: float  # v, the user's own clock
    virtual_finish: float  # E
    start: float  # S
    service_core_s: float
    unfinished_jobs: int


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """A job; ``stages`` is the number of its waiting and running stages.

    It is running while tasks of it hold slots, waiting while only its stages wait for some, and idle between
    its stages.
    """

    job: str
    user: str
    job_class: str | None
    submitted_s: float
    estimated_core_s: float
    realised_core_s: float
    virtual_finish: float
    stages: int
    running_tasks: int
    state: Literal["waiting", "running", "idle", "finished"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """State of the queue at one time."""

    now_s: float
    slots: int
    virtual_time: float
    users: tuple[UserSnapshot, ...]
    jobs: tuple[JobSnapshot, ...]
    estimate_error: EstimateError
