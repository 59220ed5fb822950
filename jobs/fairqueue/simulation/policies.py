"""Policies of a simulated cluster: Spark's own two, pools per user, and the fair queue itself.

``fifo``
    Spark's default: jobs in the order of submission.
``fair``
    Spark's fair comparator over all task sets (``minShare`` 0): fewest running tasks first.
``pools``
    A fair pool per user, jobs in the order of submission inside it: what a pool does that no file configures.
``ujf``
    User–job fairness: a fair pool per user, and fair inside it too. The baseline of arXiv 2510.15485.
``cfq``
    Cluster fair queuing: smallest virtual finish time first, every job for itself.
``uwfq``
    User weighted fair queuing: the same with users. Both drive the very
    :class:`~jobs.fairqueue.scheduler.FairScheduler` that runs in Spark, by the events that Spark shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.scheduler import FairScheduler
from jobs.fairqueue.simulation.cluster import Policy, Stage
from jobs.fairqueue.simulation.workload import Job

POLL_INTERVAL_S = 0.5  # as in Spark

Item = TypeVar("Item")
Key = Any  # comparable; the same kind for all items of a queue


class _PriorityQueue(Generic[Item]):
    """Smallest key first; keys may change. An entry of an older key is dropped when it comes to the top."""

    def __init__(self) -> None:
        self._entries: list[tuple[Key, int, Item]] = []
        self._current: dict[Item, tuple[Key, int]] = {}
        self._pushed = 0

    def __contains__(self, item: Item) -> bool:
        return item in self._current

    def put(self, item: Item, key: Key) -> None:
        self._pushed += 1
        self._current[item] = (key, self._pushed)
        heappush(self._entries, (key, self._pushed, item))

    def discard(self, item: Item) -> None:
        self._current.pop(item, None)

    def first(self) -> Item | None:
        while self._entries:
            key, pushed, item = self._entries[0]
            if self._current.get(item) == (key, pushed):
                return item
            heappop(self._entries)
        return None


class Fifo:
    """Jobs in the order of submission, stages in their order."""

    def __init__(self) -> None:
        self._stages: _PriorityQueue[Stage] = _PriorityQueue()

    def submit(self, now_s: float, job: Job) -> None:
        pass

    def add_stage(self, now_s: float, stage: Stage) -> None:
        self._stages.put(stage, (stage.job_order, stage.order))

    def choose(self, now_s: float) -> Stage | None:
        return self._stages.first()

    def task_started(self, stage: Stage) -> None:
        if not stage.waiting:
            self._stages.discard(stage)

    def task_finished(self, now_s: float, stage: Stage, run_time_s: float) -> None:
        pass

    def stage_finished(self, now_s: float, stage: Stage) -> None:
        pass

    def job_finished(self, now_s: float, job: Job) -> None:
        pass


class Fair(Fifo):
    """Fewest running tasks first, ties in the order of submission."""

    def add_stage(self, now_s: float, stage: Stage) -> None:
        self._rank(stage)

    def task_started(self, stage: Stage) -> None:
        self._rank(stage)

    def task_finished(self, now_s: float, stage: Stage, run_time_s: float) -> None:
        self._rank(stage)

    def _rank(self, stage: Stage) -> None:
        if stage.waiting:
            self._stages.put(stage, (stage.running, stage.order))
        else:
            self._stages.discard(stage)


class UserFair(Fifo):
    """The user with the fewest running tasks per weight first.

    Parameters
    ----------
    weights
        Weights of users, 1 where not given.
    fair_inside
        Inside a user, the stage with the fewest running tasks first; else the order of submission.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, *, fair_inside: bool) -> None:
        self._weights = dict(weights or {})
        self._fair_inside = fair_inside
        self._users: _PriorityQueue[str] = _PriorityQueue()
        self._pools: dict[str, _PriorityQueue[Stage]] = {}
        self._running: dict[str, int] = {}
        self._orders: dict[str, int] = {}

    def add_stage(self, now_s: float, stage: Stage) -> None:
        user = stage.job.user
        self._orders.setdefault(user, len(self._orders))
        self._running.setdefault(user, 0)
        self._pools.setdefault(user, _PriorityQueue())
        self._rank(stage)

    def choose(self, now_s: float) -> Stage | None:
        user = self._users.first()
        return None if user is None else self._pools[user].first()

    def task_started(self, stage: Stage) -> None:
        self._running[stage.job.user] += 1
        self._rank(stage)

    def task_finished(self, now_s: float, stage: Stage, run_time_s: float) -> None:
        self._running[stage.job.user] -= 1
        self._rank(stage)

    def _rank(self, stage: Stage) -> None:
        user = stage.job.user
        pool = self._pools[user]
        if stage.waiting:
            pool.put(stage, (stage.running if self._fair_inside else stage.job_order, stage.order))
        else:
            pool.discard(stage)
        if pool.first() is None:
            self._users.discard(user)
        else:
            share = self._running[user] / self._weights.get(user, 1.0)
            self._users.put(user, (share, self._orders[user]))


class FairQueue:
    """The fair queue, told what Spark would tell it: stages at once, finished tasks when it polls.

    Parameters
    ----------
    scheduler
        The core; its slots must be the cluster's.
    users
        False makes every job its own user (CFQ).
    poll_interval_s
        Seconds between two looks at the finished tasks of the running jobs.
    """

    def __init__(
        self, scheduler: FairScheduler, *, users: bool = True, poll_interval_s: float = POLL_INTERVAL_S
    ) -> None:
        self.scheduler = scheduler
        self._users = users
        self._poll_interval_s = poll_interval_s
        self._next_poll_s = 0.0
        self._stages: _PriorityQueue[Stage] = _PriorityQueue()
        self._progress: dict[str, _Progress] = {}
        self._to_observe: dict[str, None] = {}

    def submit(self, now_s: float, job: Job) -> None:
        self._progress[job.name] = _Progress()
        self.scheduler.submit_job(
            now_s,
            job.name,
            job.user if self._users else job.name,
            cost_core_s=job.declared_core_s,
            job_class=job.job_class,
        )

    def add_stage(self, now_s: float, stage: Stage) -> None:
        tasks = len(stage.run_times_s)
        self._progress[stage.job.name].known_tasks += tasks
        self.scheduler.add_stage(now_s, stage.job.name, stage, tasks=tasks)

    def choose(self, now_s: float) -> Stage | None:
        self._poll(now_s)
        self._take_changes()
        return self._stages.first()

    def task_started(self, stage: Stage) -> None:
        if not stage.waiting:
            self._stages.discard(stage)

    def task_finished(self, now_s: float, stage: Stage, run_time_s: float) -> None:
        self._progress[stage.job.name].finish(run_time_s)
        self._to_observe[stage.job.name] = None

    def stage_finished(self, now_s: float, stage: Stage) -> None:
        self.scheduler.finish_stage(now_s, stage)

    def job_finished(self, now_s: float, job: Job) -> None:
        self._to_observe.pop(job.name, None)
        core_s = self._progress.pop(job.name).finished_core_s
        self.scheduler.finish_job(now_s, job.name, core_s=core_s)

    def _poll(self, now_s: float) -> None:
        if now_s < self._next_poll_s:
            return
        self._next_poll_s = now_s + self._poll_interval_s
        for name in self._to_observe:
            seen = self._progress[name]
            self.scheduler.observe(
                now_s,
                name,
                finished_core_s=seen.finished_core_s,
                finished_tasks=seen.finished_tasks,
                known_tasks=seen.known_tasks,
            )
        self._to_observe.clear()

    def _take_changes(self) -> None:
        for stage, label in self.scheduler.take_changes().items():
            if isinstance(stage, Stage) and stage.waiting:
                self._stages.put(stage, label)


class _Progress:
    """Realised service of a job."""

    __slots__ = ("finished_core_s", "finished_tasks", "known_tasks")

    def __init__(self) -> None:
        self.finished_core_s = 0.0
        self.finished_tasks = 0
        self.known_tasks = 0

    def finish(self, run_time_s: float) -> None:
        self.finished_core_s += run_time_s
        self.finished_tasks += 1


Weights = Mapping[str, float] | None


def _fair_queue(slots: int, weights: Weights, *, users: bool) -> FairQueue:
    return FairQueue(FairScheduler(slots, weights=weights, estimator=CostEstimator()), users=users)


#: Names of the policies as they are written.
TITLES: Mapping[str, str] = {
    "fifo": "FIFO",
    "fair": "Fair",
    "pools": "Pools",
    "ujf": "UJF",
    "cfq": "CFQ",
    "uwfq": "UWFQ",
}

#: Every policy by its name: a function of the number of slots and the users' weights that makes a new one.
POLICIES: Mapping[str, Callable[[int, Weights], Policy]] = {
    "fifo": lambda slots, weights: Fifo(),
    "fair": lambda slots, weights: Fair(),
    "pools": lambda slots, weights: UserFair(weights, fair_inside=False),
    "ujf": lambda slots, weights: UserFair(weights, fair_inside=True),
    "cfq": lambda slots, weights: _fair_queue(slots, None, users=False),
    "uwfq": lambda slots, weights: _fair_queue(slots, weights, users=True),
}
