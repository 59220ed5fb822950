"""Task sets and what became of them, on one side; jobs and their order, on the other. No Spark in here.

The ledger is used from the scheduler's thread (new task sets) and from the one that watches progress. Its
lock is held for moments only and never during a call into Spark: the scheduler's thread comes with Spark's
lock held, so the other order would deadlock.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.fairqueue.errors import UnknownJobError
from jobs.fairqueue.scheduler import FairScheduler, Snapshot
from jobs.fairqueue.spark.identity import JobIdentity
from jobs.fairqueue.spark.progress import Stage, StageProgress

_SETTLING_S = 30.0  # the status store learns of a stage by messages that may come later than the stage

Changes = list[tuple[Any, int]]
"""Task sets (the handles that they were added with), and their new order labels."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Who had the slots at one time: running tasks by user."""

    now_s: float
    running: dict[str, int]


@dataclass(slots=True, eq=False)
class _Job:
    identity: JobIdentity
    idle_since_s: float
    active: set[Stage] = field(default_factory=set)
    ended_core_s: float = 0.0
    ended_tasks: int = 0
    known_ended_tasks: int = 0
    failed_stages: set[int] = field(default_factory=set)
    closed: bool = False  # its owner has said that nothing more comes
    over: bool = False


@dataclass(slots=True, eq=False)
class _Entry:
    handle: Any
    job: _Job
    added_s: float
    progress: StageProgress


class Ledger:
    """Accounts of all jobs of one Spark application.

    Parameters
    ----------
    scheduler
        The fair scheduler; used under this object's lock only.
    policy
        ``uwfq``, or ``cfq``: every job counts as a user of its own.
    idle_s
        A job without active stages for this long is over, seconds. (A later stage takes it up again.)
    max_samples
        Number of samples of :meth:`history` kept.
    """

    def __init__(
        self,
        scheduler: FairScheduler,
        *,
        policy: Literal["uwfq", "cfq"] = "uwfq",
        idle_s: float = 1.0,
        max_samples: int = 3600,
    ) -> None:
        self._scheduler = scheduler
        self._policy = policy
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._entries: dict[Stage, _Entry] = {}
        self._samples: deque[Sample] = deque(maxlen=max_samples)

    def add_task_set(
        self, now_s: float, stage: Stage, identity: JobIdentity, handle: Any, *, tasks: int
    ) -> Changes:
        """A task set waits for slots; gives the priorities to write, its own included."""
        with self._lock:
            job = self._jobs.get(identity.job)
            if job is None:
                job = self._jobs[identity.job] = _Job(identity, now_s)
            identity = job.identity
            self._scheduler.submit_job(
                now_s,
                identity.job,
                identity.user if self._policy == "uwfq" else identity.job,
                cost_core_s=identity.cost_core_s,
                job_class=identity.job_class,
                size=identity.size,
                stages=identity.stages,
            )
            self._scheduler.add_stage(now_s, identity.job, stage, tasks=tasks)
            job.over = False
            job.active.add(stage)
            self._entries[stage] = _Entry(handle, job, now_s, StageProgress("active", tasks=tasks))
            return self._take_changes()

    def active_stages(self) -> list[Stage]:
        """Stages that have not ended, as far as is known."""
        with self._lock:
            return list(self._entries)

    def report(self, now_s: float, reports: Mapping[Stage, StageProgress], *, slots: int) -> Changes:
        """Progress of active stages, and the slots there are; ends stages and jobs.

        Gives the priorities to write.
        """
        with self._lock:
            self._scheduler.set_slots(now_s, slots)
            touched = [
                job for stage, progress in reports.items() if (job := self._note(now_s, stage, progress))
            ]
            for job in dict.fromkeys(touched):
                self._observe(now_s, job)
            self._end_jobs(now_s)
            running: Counter[str] = Counter()
            for entry in self._entries.values():
                if entry.progress.running_tasks:
                    running[entry.job.identity.user] += entry.progress.running_tasks
            self._samples.append(Sample(now_s, dict(running)))
            return self._take_changes()

    def close_job(self, job: str) -> None:
        """Nothing more comes of a job: it is over when its last stage has ended."""
        with self._lock:
            if (record := self._jobs.get(job)) is not None:
                record.closed = True

    def stale(self, written: Changes) -> Changes:
        """Those of the priorities written that have changed meanwhile, with their new values."""
        with self._lock:
            now = {id(entry.handle): self._scheduler.label(stage) for stage, entry in self._entries.items()}
        found = [(handle, now.get(id(handle), label), label) for handle, label in written]
        return [(handle, label) for handle, label, before in found if label != before]

    def set_weight(self, now_s: float, user: str, weight: float) -> Changes:
        """Another weight of a user; gives the priorities to write."""
        with self._lock:
            self._scheduler.set_weight(now_s, user, weight)
            return self._take_changes()

    def snapshot(self, now_s: float) -> Snapshot:
        """State of the queue."""
        with self._lock:
            return self._scheduler.snapshot(now_s)

    def history(self, since_s: float) -> list[Sample]:
        """Samples taken since a time."""
        with self._lock:
            return [sample for sample in self._samples if sample.now_s >= since_s]

    def sizes(self) -> dict[str, int]:
        """Number of things remembered."""
        with self._lock:
            return {"jobs": len(self._jobs), "task_sets": len(self._entries)}

    # ------------------------------------------------------------------ inside, under the lock

    def _note(self, now_s: float, stage: Stage, progress: StageProgress) -> _Job | None:
        """Take in the progress of a stage; gives its job if there is any."""
        entry = self._entries.get(stage)
        if entry is None:
            return None
        job = entry.job
        if progress.state == "lost":
            if now_s - entry.added_s < _SETTLING_S and not self._has_later_attempt(stage):
                return None
            progress = entry.progress
        elif progress.state == "active":
            if progress == entry.progress:
                return None
            entry.progress = progress
            return job
        del self._entries[stage]
        job.active.discard(stage)
        job.idle_since_s = now_s
        job.ended_core_s += progress.finished_core_s
        job.ended_tasks += progress.finished_tasks
        if progress.state == "failed":
            job.failed_stages.add(stage[0])
            job.known_ended_tasks += progress.finished_tasks
        else:
            job.failed_stages.discard(stage[0])
            job.known_ended_tasks += progress.tasks
        self._scheduler.finish_stage(now_s, stage)
        return job

    def _has_later_attempt(self, stage: Stage) -> bool:
        return any(number == stage[0] and attempt > stage[1] for number, attempt in self._entries)

    def _observe(self, now_s: float, job: _Job) -> None:
        parts = [self._entries[stage].progress for stage in job.active]
        self._scheduler.observe(
            now_s,
            job.identity.job,
            finished_core_s=job.ended_core_s + sum(part.finished_core_s for part in parts),
            finished_tasks=job.ended_tasks + sum(part.finished_tasks for part in parts),
            known_tasks=job.known_ended_tasks + sum(part.tasks for part in parts),
        )

    def _end_jobs(self, now_s: float) -> None:
        """End idle jobs; forget those that the scheduler has forgotten."""
        for name, job in list(self._jobs.items()):
            if job.active:
                continue
            if not job.over and (job.closed or now_s - job.idle_since_s >= self._idle_s):
                job.over = True
                self._scheduler.finish_job(now_s, name, core_s=job.ended_core_s, learn=not job.failed_stages)
            if job.over and not self._is_known(name):
                del self._jobs[name]

    def _is_known(self, job: str) -> bool:
        try:
            self._scheduler.virtual_finish(job)
        except UnknownJobError:
            return False
        return True

    def _take_changes(self) -> Changes:
        changes = self._scheduler.take_changes()
        return [
            (self._entries[stage].handle, label) for stage, label in changes.items() if stage in self._entries
        ]
