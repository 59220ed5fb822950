"""What a simulated cluster is asked to do: jobs of users, made of stages of tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heapify, heapreplace

from jobs.fairqueue.errors import FairQueueParameterError, require_non_negative, require_positive
from jobs.fairqueue.tasks import ADVISORY_TASK_RUN_TIME_S, n_tasks


@dataclass(frozen=True)
class Job:
    """One job of one user.

    Parameters
    ----------
    name
        Unique in its workload.
    user
        Who asked for it.
    stages
        Run times of the tasks of each stage, seconds on one slot. A stage starts when the one before it ends.
    submit_s
        When it is submitted, seconds from the start.
    after
        Job whose end submits this one: the user waits for the answer before asking again. ``submit_s`` is the
        earliest time then.
    job_class
        Class whose learned cost estimates the job's.
    declared_core_s
        Cost that the user declares, core-seconds; None where it declares none.

    Raises
    ------
    FairQueueParameterError
        A stage without tasks, a run time that is not positive, or a time of submission before 0.
    """

    name: str
    user: str
    stages: tuple[tuple[float, ...], ...]
    submit_s: float = 0.0
    after: str | None = None
    job_class: str | None = None
    declared_core_s: float | None = None

    def __post_init__(self) -> None:
        if not self.stages or not all(self.stages):
            raise FairQueueParameterError(f"'stages' of job {self.name!r} must hold at least one task each")
        for run_time_s in {run_time_s for stage in self.stages for run_time_s in stage}:
            require_positive(f"run times of job {self.name!r}", run_time_s)
        require_non_negative(f"'submit_s' of job {self.name!r}", self.submit_s)

    @cached_property
    def core_s(self) -> float:
        """Service that it needs, core-seconds."""
        return math.fsum(run_time_s for stage in self.stages for run_time_s in stage)

    def declaring(self, core_s: float | None) -> Job:
        """The same job with another declared cost."""
        return replace(self, declared_core_s=core_s)


def partitioned(
    core_s: float, advisory_task_run_time_s: float = ADVISORY_TASK_RUN_TIME_S
) -> tuple[float, ...]:
    """Run times of one fully parallel stage: equal tasks, none longer than the advisory task run time.

    Raises
    ------
    FairQueueParameterError
        An argument is not positive.
    """
    require_positive("'core_s'", core_s)
    tasks = n_tasks(core_s, advisory_task_run_time_s=advisory_task_run_time_s)
    return (core_s / tasks,) * tasks


def check_workload(jobs: Sequence[Job]) -> None:
    """Names are unique, and who waits for a job waits for one that stands earlier in the workload.

    Raises
    ------
    FairQueueParameterError
        A rule is broken.
    """
    name, count = next(iter(Counter(job.name for job in jobs).most_common(1)), ("", 0))
    if count > 1:
        raise FairQueueParameterError(f"names of jobs must be unique (got {name!r} {count} times)")
    known: set[str] = set()
    for job in jobs:
        if job.after is not None and job.after not in known:
            raise FairQueueParameterError(
                f"'after' of job {job.name!r} must name an earlier job (got {job.after!r})"
            )
        known.add(job.name)


def idle_response_s(job: Job, slots: int) -> float:
    """Response time of a job that has the cluster for itself, its tasks started in order, seconds."""
    total_s = 0.0
    for stage in job.stages:
        busy_until_s = list(stage[:slots])
        heapify(busy_until_s)
        for run_time_s in stage[slots:]:
            heapreplace(busy_until_s, busy_until_s[0] + run_time_s)
        total_s += max(busy_until_s)
    return total_s
