"""The fair scheduler: what happens to jobs goes in, the order of their stages comes out.

User Weighted Fair Queuing [1]_: every stage (task set) of a job is dispatched by the job's virtual finish
(:mod:`jobs.fairqueue.clock`), the smallest first, without preemption. Stages that have the same finish keep
the order of submission. Nothing here knows Spark, threads or the time of day; Spark and the simulator drive
the same object.

What a job is thought to cost
    At submission: the cost that its owner declares, else what its class has cost, else a default
    (:mod:`jobs.fairqueue.estimates`). What is learned later is applied to the jobs that still wait, too:
    otherwise those that nobody has measured yet would overtake their measured like.

    From the first finished task on: the service of the finished tasks, and for each known task to come the
    mean task time. In this mean an estimate that rests on anything counts as two tasks more, each of the time
    that it implies (at most four times what is measured): the first tasks of a job may be cold, and one slow
    task would put a job with a well-known cost behind all others. If more stages are expected than are known
    (the class had more last time, or the owner says so), the part that is still unknown keeps its share of
    the first estimate, ``first estimate x (1 - known stages / expected stages)``. Where nothing is known
    about further stages they count from when they appear; service that nobody has asked for cannot be given
    anyway, and each new stage is charged at once.

    Always: at least the service that it has had. At the end: exactly that.

Each correction moves the account of the job's user by the difference, and service counts before all jobs of
its user that come earlier in the chain. So a wrong or dishonest estimate, of any job, can reorder a user's
own jobs but does not change how much its user gets; declarations need no checking of their own.

References
----------
.. [1] "Balancing Fairness and Performance in Multi-User Spark Workloads with Dynamic Scheduling",
   arXiv 2510.15485.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from jobs.fairqueue.clock import VirtualClock
from jobs.fairqueue.errors import (
    MAX_COST_CORE_S,
    FairQueueParameterError,
    InvariantError,
    UnknownJobError,
    require_cost,
    require_non_negative,
)
from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.labels import OrderLabels
from jobs.fairqueue.record import JobRecord
from jobs.fairqueue.snapshot import JobSnapshot, Snapshot, UserSnapshot

__all__ = ["FairScheduler", "JobSnapshot", "Snapshot", "UserSnapshot"]

_TOLERANCE = 0.1  # a cost this close to the estimate changes nothing


class FairScheduler:
    """User Weighted Fair Queuing: events in, order labels out.

    All times are seconds of one clock given by the caller; a time before the latest one seen counts as that
    one. All costs are core-seconds.

    Parameters
    ----------
    slots
        Number of tasks that run at the same time.
    weights
        Weight per user; users that are not named have ``default_weight``.
    default_weight
        Weight of all other users.
    grace_s
        For how long a user that has left the virtual system can go on with a job where it stopped, seconds.
    estimator
        Learned costs; a new one by default.

    Raises
    ------
    FairQueueParameterError
        A weight, the number of slots or the grace period breaks its rule.
    """

    def __init__(
        self,
        slots: int,
        *,
        weights: Mapping[str, float] | None = None,
        default_weight: float = 1.0,
        grace_s: float = 2.0,
        estimator: CostEstimator | None = None,
    ) -> None:
        self._clock = VirtualClock(slots, weights=weights, default_weight=default_weight, grace_s=grace_s)
        self._estimator = CostEstimator() if estimator is None else estimator
        self._labels = OrderLabels()
        self._jobs: dict[str, JobRecord] = {}
        self._job_of: dict[Hashable, JobRecord] = {}
        self._unmeasured: dict[str, dict[str, JobRecord]] = {}  # by the class that they are guessed by
        self._stage_numbers = 0

    # ------------------------------------------------------------------ events

    def submit_job(
        self,
        now_s: float,
        job: str,
        user: str,
        *,
        cost_core_s: float | None = None,
        job_class: str | None = None,
        size: float | None = None,
        stages: int | None = None,
        default_core_s: float | None = None,
    ) -> None:
        """A user submits a job.

        A job that is known and unfinished stays as it is; a finished one goes on at its last virtual finish.

        Parameters
        ----------
        now_s
            Time, seconds.
        job, user
            Names; a job keeps its first user.
        cost_core_s
            Declared cost, core-seconds; without it the cost is learned by ``job_class``.
        job_class
            Jobs of one class are expected to resemble each other.
        size
            Size of the input, in a unit of the class's own; learned costs are scaled by it.
        stages
            Number of stages that the job will have, if its owner knows.
        default_core_s
            Cost where none is declared or learned, core-seconds; else the estimator's default.

        Raises
        ------
        FairQueueParameterError
            The cost or the size is negative, not finite or too large, or a name is empty.
        """
        if not job or not user:
            raise FairQueueParameterError(f"'job' and 'user' must not be empty (got {job!r} and {user!r})")
        if size is not None:
            require_non_negative(f"'size' of job {job!r}", size)
        if cost_core_s is not None:
            require_cost(f"'cost_core_s' of job {job!r}", cost_core_s)
        self._advance(now_s)
        known = self._jobs.get(job)
        if known is not None:
            known.finished = False
            return
        if cost_core_s is not None:
            cost = cost_core_s
        elif default_core_s is not None and not self._estimator.knows(job_class):
            cost = require_cost(f"'default_core_s' of job {job!r}", default_core_s)
        else:
            cost = self._estimator.estimate(job_class, size)
        moved = self._clock.add(job, user, cost)
        record = self._jobs[job] = JobRecord(
            job=job,
            user=user,
            number=self._clock.number(job),
            job_class=job_class,
            size=size,
            submitted_s=self._clock.now_s,
            declared_core_s=cost_core_s,
            first_estimate_core_s=cost,
            estimated_core_s=cost,
            informed=cost_core_s is not None or self._estimator.knows(job_class),
            expected_stages=self._estimator.stages(job_class) if stages is None else stages,
        )
        if record.guessed_class is not None:
            self._unmeasured.setdefault(record.guessed_class, {})[job] = record
        self._place(moved)
        self._forget_done()

    def add_stage(self, now_s: float, job: str, stage: Hashable, *, tasks: int = 1) -> int:
        """A stage of a job waits for slots; gives its order label. A known stage keeps its place.

        Raises
        ------
        UnknownJobError
            The job was never submitted, or is forgotten.
        """
        self._advance(now_s)
        record = self._jobs.get(job)
        if record is None:
            raise UnknownJobError(f"'job' must be one that was submitted (got {job!r})")
        if stage not in self._job_of:
            self._job_of[stage] = record
            record.stages[stage] = self._stage_numbers
            self._stage_numbers += 1
            record.stages_seen += 1
            record.tasks_added += tasks
            self._place([job])
            self._estimate_again(record)
            self._forget_done()
        return self._labels.label(stage)

    def observe(
        self,
        now_s: float,
        job: str,
        *,
        finished_core_s: float,
        finished_tasks: int,
        known_tasks: int,
        running_tasks: int = 0,
    ) -> None:
        """The service that a job has had so far; its cost is estimated again.

        A job that is not known, or forgotten, is ignored: reports may come late.

        Parameters
        ----------
        now_s
            Time, seconds.
        job
            Name of the job.
        finished_core_s
            Core-seconds in finished tasks, over all stages of the job.
        finished_tasks
            Number of these tasks.
        known_tasks
            Number of tasks of all stages known so far, the finished ones included.
        running_tasks
            Tasks that hold slots now; for :meth:`snapshot` only.

        Raises
        ------
        FairQueueParameterError
            The service is negative or not finite.
        """
        require_cost(f"'finished_core_s' of job {job!r}", finished_core_s)
        self._advance(now_s)
        record = self._jobs.get(job)
        if record is None:
            return
        record.finished_tasks = max(record.finished_tasks, finished_tasks)
        record.known_tasks = max(record.known_tasks, known_tasks)
        record.running_tasks = running_tasks
        self._serve(record, finished_core_s)
        self._estimate_again(record)
        self._forget_done()

    def finish_stage(self, now_s: float, stage: Hashable) -> None:
        """A stage has completed, failed or been cancelled; unknown stages are ignored."""
        self._advance(now_s)
        record = self._job_of.pop(stage, None)
        if record is None:
            return
        del record.stages[stage]
        self._labels.remove(stage)
        self._forget_done(record.job)

    def finish_job(self, now_s: float, job: str, *, core_s: float | None = None, learn: bool = True) -> None:
        """A job is over; its user is charged what the job has used.

        A job that is not known, or forgotten, is ignored.

        Parameters
        ----------
        now_s
            Time, seconds.
        job
            Name of the job.
        core_s
            Core-seconds that it used, 0 if it never ran; by default what was observed, or else the estimate.
        learn
            Whether the job tells about others of its class: not if it failed or was cancelled.

        Raises
        ------
        FairQueueParameterError
            The cost is negative or not finite.
        """
        if core_s is not None:
            require_cost(f"'core_s' of job {job!r}", core_s)
        self._advance(now_s)
        record = self._jobs.get(job)
        if record is None:
            return
        if core_s is None and record.finished_tasks:
            core_s = record.realised_core_s
        if core_s is not None:
            self._serve(record, core_s)
            self._charge(record, core_s)
        if not learn and record.job_class is not None:
            self._estimator.unforesee(record.job_class)
        learn = learn and core_s is not None and not record.finished
        record.finished = True
        if core_s is not None and learn:
            first_estimate, stages = record.first_estimate_core_s, record.stages_seen
            self._estimator.learn(record.job_class, core_s, record.size, first_estimate, stages)
        self._measured(record, core_s if learn else None)
        if record.guessed_class is not None:
            self._guess_again(record.guessed_class)
        self._forget_done(record.job)

    def set_weight(self, now_s: float, user: str, weight: float) -> None:
        """Give a user another weight from now on.

        Raises
        ------
        FairQueueParameterError
            The weight is not positive and finite, or out of range.
        """
        self._advance(now_s)
        self._place(self._clock.set_weight(user, weight))
        self._forget_done()

    def set_slots(self, now_s: float, slots: int) -> None:
        """Another number of slots from now on; 0 while there are none."""
        self._advance(now_s)
        self._clock.set_slots(slots)

    # ------------------------------------------------------------------ decisions

    def take_changes(self) -> dict[Hashable, int]:
        """Stages whose label changed since the last call, new ones included."""
        return self._labels.take_changes()

    def label(self, stage: Hashable) -> int:
        """Order label of a stage: the smaller runs first; within ±2**30. KeyError for an unknown stage."""
        return self._labels.label(stage)

    def order(self) -> list[Hashable]:
        """Stages in the order of dispatch: by virtual finish, then by submission."""
        return self._labels.order()

    # ------------------------------------------------------------------ inspection

    @property
    def virtual_time(self) -> float:
        """``V`` at the latest time seen."""
        return self._clock.virtual_time

    @property
    def relabelled(self) -> int:
        """Labels written so far only to make room for others."""
        return self._labels.relabelled

    def virtual_finish(self, job: str) -> float:
        """``D`` of a job.

        Raises
        ------
        UnknownJobError
            The job was never submitted, or is forgotten.
        """
        return self._clock.virtual_finish(job)

    def snapshot(self, now_s: float) -> Snapshot:
        """State of the queue; all values are plain, so ``dataclasses.asdict`` of it is JSON."""
        self._advance(now_s)
        self._clock.catch_up()
        self._forget_done()
        unfinished = dict.fromkeys(self._clock.users, 0)
        for record in self._jobs.values():
            unfinished[record.user] += not record.finished
        users = tuple(
            UserSnapshot(
                user=name,
                weight=account.weight,
                backlogged=account.backlogged,
                virtual_time=account.own_time,
                virtual_finish=account.finish,
                start=account.start,
                service_core_s=account.service_core_s,
                unfinished_jobs=unfinished[name],
            )
            for name, account in self._clock.users.items()
        )
        jobs = tuple(
            record.snapshot(self._clock.virtual_finish(record.job)) for record in self._jobs.values()
        )
        clock = self._clock
        return Snapshot(clock.now_s, clock.slots, clock.virtual_time, users, jobs, self._estimator.error())

    def check(self) -> None:
        """Raise InvariantError, naming the invariant, if the state contradicts itself."""
        self._clock.check()
        self._labels.check()
        stages = {stage: record for record in self._jobs.values() for stage in record.stages}
        if stages != self._job_of or set(self._labels.order()) != stages.keys():
            raise InvariantError("broken invariant: each waiting stage has one known job and one label")
        for record in self._jobs.values():
            if record.finished and not record.stages and self._clock.is_done(record.job):
                raise InvariantError(f"broken invariant: {record.job!r} is over and should be forgotten")
        order = [(self._clock.virtual_finish(stages[s].job), stages[s].number) for s in self._labels.order()]
        if order != sorted(order):
            raise InvariantError("broken invariant: stages are in the order of virtual finish")

    def sizes(self) -> dict[str, int]:
        """Number of things remembered, which stays bounded however long the scheduler runs."""
        return {
            "users": len(self._clock.users),
            "jobs": len(self._jobs),
            "stages": len(self._job_of),
            "labels": len(self._labels),
            "unmeasured": sum(map(len, self._unmeasured.values())),
            "job_classes": len(self._estimator),
        }

    # ------------------------------------------------------------------ inside

    def _advance(self, now_s: float) -> None:
        self._clock.advance(now_s)
        self._forget_done()

    def _place(self, moved: list[str]) -> None:
        """Put the stages of jobs whose virtual finish changed where they belong."""
        for job in moved:
            record = self._jobs[job]
            if record.stages:
                finish = self._clock.virtual_finish(job)
                for stage, number in record.stages.items():
                    self._labels.place(stage, (finish, record.number, number))

    def _serve(self, record: JobRecord, finished_core_s: float) -> None:
        """Count service up to a total; totals only grow."""
        if finished_core_s > record.realised_core_s:
            record.realised_core_s = finished_core_s
            self._place(self._clock.serve(record.job, finished_core_s))

    def _estimate_again(self, record: JobRecord) -> None:
        """Replace the estimate by what the job's own service says."""
        estimate, measured = record.estimated_core_s, record.measured_core_s()
        cost = min(record.realised_core_s if measured is None else measured, MAX_COST_CORE_S)
        new = measured is not None and abs(cost - estimate) > _TOLERANCE * estimate
        if new or record.realised_core_s > estimate:
            self._charge(record, cost)
        if measured is not None and self._measured(record, cost) and record.guessed_class is not None:
            self._guess_again(record.guessed_class)

    def _measured(self, record: JobRecord, cost_core_s: float | None) -> bool:
        """The cost of a job is more than a guess now; gives whether that is new. None teaches nothing."""
        job_class = record.guessed_class
        unmeasured = {} if job_class is None else self._unmeasured.get(job_class, {})
        if job_class is None or unmeasured.pop(record.job, None) is None:
            return False
        if not unmeasured:
            del self._unmeasured[job_class]
        if cost_core_s is not None:
            self._estimator.foresee(job_class, cost_core_s, record.size)
        return True

    def _guess_again(self, job_class: str) -> None:
        """Apply what was learned of a class to the jobs that nobody has measured yet."""
        changes = {}
        informed = self._estimator.knows(job_class)
        for record in self._unmeasured.get(job_class, {}).values():
            cost = self._estimator.estimate(job_class, record.size)
            change = cost - record.estimated_core_s
            if abs(change) <= _TOLERANCE * record.estimated_core_s:
                break  # one experience moves them all alike
            record.first_estimate_core_s = record.estimated_core_s = cost
            record.informed = informed
            changes[record.job] = change
        if changes:
            self._place(self._clock.correct(changes))

    def _charge(self, record: JobRecord, cost_core_s: float) -> None:
        change = cost_core_s - record.estimated_core_s
        record.estimated_core_s = cost_core_s
        if change:
            self._place(self._clock.correct({record.job: change}))

    def _forget_done(self, *also: str) -> None:
        """Forget jobs that are finished, virtually done and without stages, as an event's last act."""
        for job in {*self._clock.take_done(), *also}:
            record = self._jobs.get(job)
            if record and record.finished and not record.stages and self._clock.is_done(job):
                del self._jobs[job]
                self._place(self._clock.forget(job))
