"""A cluster in discrete events: equal slots, tasks that run to their end, a policy that says who is next.

All events of one instant are taken in before slots are given out. A slot is never idle while a task waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple, Protocol

from jobs.fairqueue.errors import FairQueueParameterError
from jobs.fairqueue.simulation.workload import Job, check_workload


@dataclass(slots=True, eq=False)
class Stage:
    """A stage whose tasks may run, as a policy sees it.

    ``job_order`` and ``order`` number jobs and stages in the order of their submission.
    """

    job: Job
    job_order: int
    order: int
    run_times_s: tuple[float, ...]
    started: int = 0
    finished: int = 0

    @property
    def running(self) -> int:
        return self.started - self.finished

    @property
    def waiting(self) -> int:
        return len(self.run_times_s) - self.started


class Policy(Protocol):
    """Who gets the next slot. Told of every event, in the order of time."""

    def submit(self, now_s: float, job: Job) -> None:
        """A job is submitted; its first stage follows."""

    def add_stage(self, now_s: float, stage: Stage) -> None:
        """Tasks of a stage may run from now on."""

    def choose(self, now_s: float) -> Stage | None:
        """Stage with waiting tasks whose task runs next; None if there is none."""

    def task_started(self, stage: Stage) -> None:
        """A task of the stage has got a slot."""

    def task_finished(self, now_s: float, stage: Stage, run_time_s: float) -> None:
        """A task of the stage has ended."""

    def stage_finished(self, now_s: float, stage: Stage) -> None:
        """All tasks of the stage have ended."""

    def job_finished(self, now_s: float, job: Job) -> None:
        """All stages of the job have ended."""


class TaskRun(NamedTuple):
    """A task's place in the schedule; ``job`` is the position of its job in the workload."""

    job: int
    slot: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happened.

    Parameters
    ----------
    jobs
        The workload.
    slots
        Number of slots.
    submit_s, finish_s
        When each job was submitted and when it ended, in the order of ``jobs``.
    tasks
        Every task, in the order in which they were started.
    """

    jobs: tuple[Job, ...]
    slots: int
    submit_s: tuple[float, ...]
    finish_s: tuple[float, ...]
    tasks: tuple[TaskRun, ...]

    @property
    def makespan_s(self) -> float:
        """End of the last job."""
        return max(self.finish_s, default=0.0)

    @property
    def response_s(self) -> tuple[float, ...]:
        """Seconds from a job's submission to its end."""
        return tuple(end - start for start, end in zip(self.submit_s, self.finish_s, strict=True))

    def as_submitted(self) -> tuple[Job, ...]:
        """The workload with the times of submission of this schedule, nobody waiting for anything."""
        return tuple(
            replace(job, submit_s=submit_s, after=None)
            for job, submit_s in zip(self.jobs, self.submit_s, strict=True)
        )


def simulate(jobs: Sequence[Job], policy: Policy, *, slots: int) -> Schedule:
    """Run a workload to its end.

    Time: O(log n) per task, and what the policy needs.

    Raises
    ------
    FairQueueParameterError
        ``slots`` is not positive, or the workload breaks a rule.
    """
    if slots < 1:
        raise FairQueueParameterError(f"'slots' must be positive (got {slots})")
    check_workload(jobs)
    return _Cluster(tuple(jobs), policy, slots).run()


@dataclass(slots=True)
class _Cluster:
    jobs: tuple[Job, ...]
    policy: Policy
    slots: int
    submit_s: list[float] = field(init=False)
    finish_s: list[float] = field(init=False)
    tasks: list[TaskRun] = field(default_factory=list)
    _arrivals: list[tuple[float, int]] = field(default_factory=list)
    _ends: list[tuple[float, int, int, Stage]] = field(default_factory=list)
    _free: list[int] = field(init=False)
    _followers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    _job_orders: list[int] = field(init=False)
    _next_stage: list[int] = field(init=False)
    _stage_count: count[int] = field(default_factory=count)
    _job_count: count[int] = field(default_factory=count)
    _position: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.submit_s = [0.0] * len(self.jobs)
        self.finish_s = [0.0] * len(self.jobs)
        self._free = list(range(self.slots))
        self._job_orders = [0] * len(self.jobs)
        self._next_stage = [0] * len(self.jobs)
        self._position = {job.name: i for i, job in enumerate(self.jobs)}

    def run(self) -> Schedule:
        for i, job in enumerate(self.jobs):
            if job.after is None:
                heappush(self._arrivals, (job.submit_s, i))
            else:
                self._followers[job.after].append(i)
        while self._arrivals or self._ends:
            now_s = min(queue[0][0] for queue in (self._arrivals, self._ends) if queue)
            while self._ends and self._ends[0][0] <= now_s:
                self._end_task(now_s)
            while self._arrivals and self._arrivals[0][0] <= now_s:
                self._submit(now_s, heappop(self._arrivals)[1])
            self._give_out(now_s)
        return Schedule(self.jobs, self.slots, tuple(self.submit_s), tuple(self.finish_s), tuple(self.tasks))

    def _submit(self, now_s: float, position: int) -> None:
        self.submit_s[position] = now_s
        self._job_orders[position] = next(self._job_count)
        self.policy.submit(now_s, self.jobs[position])
        self._add_stage(now_s, position)

    def _add_stage(self, now_s: float, position: int) -> None:
        job, index = self.jobs[position], self._next_stage[position]
        self._next_stage[position] += 1
        stage = Stage(job, self._job_orders[position], next(self._stage_count), job.stages[index])
        self.policy.add_stage(now_s, stage)

    def _give_out(self, now_s: float) -> None:
        while self._free and (stage := self.policy.choose(now_s)) is not None:
            slot, position = heappop(self._free), self._position[stage.job.name]
            end_s = now_s + stage.run_times_s[stage.started]
            stage.started += 1
            heappush(self._ends, (end_s, len(self.tasks), slot, stage))
            self.tasks.append(TaskRun(position, slot, now_s, end_s))
            self.policy.task_started(stage)

    def _end_task(self, now_s: float) -> None:
        _, task, slot, stage = heappop(self._ends)
        heappush(self._free, slot)
        stage.finished += 1
        self.policy.task_finished(now_s, stage, now_s - self.tasks[task].start_s)
        if stage.finished < len(stage.run_times_s):
            return
        self.policy.stage_finished(now_s, stage)
        position = self._position[stage.job.name]
        if self._next_stage[position] < len(stage.job.stages):
            self._add_stage(now_s, position)
            return
        self.finish_s[position] = now_s
        self.policy.job_finished(now_s, stage.job)
        for follower in self._followers.pop(stage.job.name, ()):
            heappush(self._arrivals, (max(now_s, self.jobs[follower].submit_s), follower))
