"""Task sets and what became of them, on one side; jobs and their order, on the other. No Spark in here.

The ledger is used from the scheduler's thread (new task sets) and from the one that watches progress. Its
lock is held for moments only and never during a call into Spark: the scheduler's thread comes with Spark's
lock held, so the other order would deadlock.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar, cast

from jobs.fairqueue.errors import UnknownJobError
from jobs.fairqueue.scheduler import FairScheduler, Snapshot
from jobs.fairqueue.spark.identity import JobIdentity, Operation
from jobs.fairqueue.spark.progress import Stage, StageProgress

_SETTLING_S = 30.0  # the status store learns of a stage by messages that may come later than the stage
_RETRY_S = 1.0  # Spark submits a failed stage again well within this time
_DRAINING_S = 600.0  # the tasks of a cancelled stage may run on; messages that tell of their ends may be lost

T = TypeVar("T")


class Change(NamedTuple):
    """The priority to write for a task set, which is the handle that it was added with."""

    stage: Stage
    task_set: Any
    priority: int


Changes = list[Change]


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
    taught: bool = False  # its cost is learned; what comes after its end is not another job of its class


@dataclass(slots=True, eq=False)
class _Entry:
    handle: Any
    job: _Job
    added_s: float
    progress: StageProgress
    ended_s: float | None = None  # out of the queue since; tasks of it may still run

    @property
    def known_tasks(self) -> int:
        """Tasks that have run or will: those of a failed stage that were not started never do."""
        progress = self.progress
        if progress.state == "failed":
            return progress.finished_tasks + progress.running_tasks
        return progress.tasks


class Ledger:
    """Accounts of all jobs of one Spark application.

    Parameters
    ----------
    scheduler
        The fair scheduler; used under this object's lock only.
    policy
        ``uwfq``, or ``cfq``: every job counts as a user of its own.
    idle_s
        A job that nobody has opened is over after this long without a stage, seconds; a failed one sooner.
        (A later stage takes it up again.)
    max_samples
        Number of samples of :meth:`history` kept.
    default_task_s
        What a task of a job about which nothing is known is taken to need, seconds; None leaves such jobs to
        the estimator's default.
    """

    def __init__(
        self,
        scheduler: FairScheduler,
        *,
        policy: Literal["uwfq", "cfq"] = "uwfq",
        idle_s: float = 10.0,
        max_samples: int = 3600,
        default_task_s: float | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._policy = policy
        self._idle_s = idle_s
        self._default_task_s = default_task_s
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._entries: dict[Stage, _Entry] = {}
        self._open: Counter[str] = Counter()
        self._unwritten: dict[Stage, None] = {}  # in the order of their changes
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
            by_tasks = identity.size is None and not identity.class_given
            self._scheduler.submit_job(
                now_s,
                identity.job,
                identity.user if self._policy == "uwfq" else identity.job,
                cost_core_s=identity.cost_core_s,
                job_class=identity.job_class,
                size=float(tasks) if by_tasks else identity.size,
                stages=identity.stages,
                default_core_s=None if self._default_task_s is None else tasks * self._default_task_s,
            )
            self._scheduler.add_stage(now_s, identity.job, stage, tasks=tasks)
            job.over = False
            job.active.add(stage)
            self._entries[stage] = _Entry(handle, job, now_s, StageProgress("active", tasks=tasks))
            fresh = self._moved()
            fresh[stage] = None
            self._unwritten.update(fresh)
            return self._changes(fresh)  # alone: what others are about to write would keep Spark waiting

    def active_stages(self) -> list[Stage]:
        """Stages that wait or have tasks that run, as far as is known."""
        with self._lock:
            return list(self._entries)

    def paused_operations(self, now_s: float) -> dict[str, Operation]:
        """Jobs that are Connect operations, may be over, and are to be closed if they are."""
        with self._lock:
            return {
                name: job.identity.operation
                for name, job in self._jobs.items()
                if job.identity.operation is not None
                and not (job.active or job.over or job.closed)
                and now_s - job.idle_since_s >= _RETRY_S
            }

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

    def open_job(self, job: str) -> None:
        """A job begins that is not over before :meth:`close_job`, however long it pauses."""
        with self._lock:
            self._open[job] += 1
            if (record := self._jobs.get(job)) is not None:
                record.closed = False

    def close_job(self, job: str) -> None:
        """Nothing more comes of a job: it is over when its last stage has ended, unless opened once more."""
        with self._lock:
            self._open[job] -= 1
            if self._open[job] <= 0:
                del self._open[job]
                if (record := self._jobs.get(job)) is not None:
                    record.closed = True

    def written(self, changes: Changes) -> Changes:
        """Take in which priorities were written; gives those to write still.

        A priority may have changed again while it was written. What is not reported here is given out again
        with the next report.
        """
        with self._lock:
            for change in changes:
                entry = self._entries.get(change.stage)
                if entry is None or entry.ended_s is not None or entry.handle is not change.task_set:
                    continue
                if self._scheduler.label(change.stage) == change.priority:
                    self._unwritten.pop(change.stage, None)
                else:
                    self._unwritten[change.stage] = None
            return self._changes(self._unwritten)

    def set_weight(self, now_s: float, user: str, weight: float) -> Changes:
        """Another weight of a user; gives the priorities to write."""
        with self._lock:
            self._scheduler.set_weight(now_s, user, weight)
            return self._take_changes()

    def locked(self, read: Callable[[], T]) -> T:
        """Result of ``read``, called while nothing else changes the scheduler or its estimator."""
        with self._lock:
            return read()

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
            entry.progress = replace(entry.progress, running_tasks=0)
            self._leave_queue(now_s, stage, entry)
        elif progress.state != "active":
            entry.progress = progress
            self._leave_queue(now_s, stage, entry)
        elif progress == entry.progress:
            return None
        else:
            entry.progress = progress
        if entry.ended_s is not None and (
            not entry.progress.running_tasks or now_s - entry.ended_s >= _DRAINING_S
        ):
            self._settle(now_s, stage, entry)
        return job

    def _has_later_attempt(self, stage: Stage) -> bool:
        return any(number == stage[0] and attempt > stage[1] for number, attempt in self._entries)

    def _leave_queue(self, now_s: float, stage: Stage, entry: _Entry) -> None:
        """A stage waits no longer, though tasks of it that nobody needs may run on."""
        if entry.ended_s is not None:
            return
        entry.ended_s = now_s
        self._unwritten.pop(stage, None)
        self._scheduler.finish_stage(now_s, stage)
        if entry.progress.state == "failed":
            entry.job.failed_stages.add(stage[0])
        else:
            entry.job.failed_stages.discard(stage[0])

    def _settle(self, now_s: float, stage: Stage, entry: _Entry) -> None:
        """Nothing of a stage runs any more: what it has used is final."""
        del self._entries[stage]
        job = entry.job
        job.active.discard(stage)
        job.idle_since_s = now_s
        job.ended_core_s += entry.progress.finished_core_s
        job.ended_tasks += entry.progress.finished_tasks
        job.known_ended_tasks += entry.known_tasks

    def _observe(self, now_s: float, job: _Job) -> None:
        entries = [self._entries[stage] for stage in job.active]
        self._scheduler.observe(
            now_s,
            job.identity.job,
            finished_core_s=job.ended_core_s + sum(entry.progress.finished_core_s for entry in entries),
            finished_tasks=job.ended_tasks + sum(entry.progress.finished_tasks for entry in entries),
            known_tasks=job.known_ended_tasks + sum(entry.known_tasks for entry in entries),
            running_tasks=sum(entry.progress.running_tasks for entry in entries),
        )

    def _end_jobs(self, now_s: float) -> None:
        """End jobs that are over; forget those that the scheduler has forgotten."""
        for name, job in list(self._jobs.items()):
            if job.active:
                continue
            if not job.over and now_s - job.idle_since_s >= self._patience_s(name, job):
                self._finish(now_s, name, job)
            if job.over and not self._is_known(name):
                del self._jobs[name]

    def _patience_s(self, name: str, job: _Job) -> float:
        """How long a job without stages may have more to come, seconds."""
        if name in self._open:
            return math.inf
        if job.closed:
            return 0.0
        return min(_RETRY_S, self._idle_s) if job.failed_stages else self._idle_s

    def _finish(self, now_s: float, name: str, job: _Job) -> None:
        job.over = True
        learn = not job.failed_stages and not job.taught
        job.taught |= learn
        self._scheduler.finish_job(now_s, name, core_s=job.ended_core_s, learn=learn)

    def _is_known(self, job: str) -> bool:
        try:
            self._scheduler.virtual_finish(job)
        except UnknownJobError:
            return False
        return True

    def _take_changes(self) -> Changes:
        """All priorities to write."""
        self._unwritten.update(self._moved())
        return self._changes(self._unwritten)

    def _moved(self) -> dict[Stage, None]:
        """Stages whose labels are new; all stages of the scheduler come from here."""
        return dict.fromkeys(cast("Iterable[Stage]", self._scheduler.take_changes()))

    def _changes(self, stages: Iterable[Stage]) -> Changes:
        return [
            Change(stage, entry.handle, self._scheduler.label(stage))
            for stage in stages
            if (entry := self._entries.get(stage)) is not None and entry.ended_s is None
        ]
