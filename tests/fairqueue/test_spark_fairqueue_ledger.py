"""The ledger between Spark's task sets and the fair scheduler, driven without Spark."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np

from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.scheduler import FairScheduler
from jobs.fairqueue.spark.identity import JobIdentity
from jobs.fairqueue.spark.ledger import Changes, Ledger
from jobs.fairqueue.spark.progress import Stage, StageProgress


class TaskSet:
    """Stands for Spark's ``TaskSetManager``."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.priority = stage[0]


class Application:
    """A ledger, and the task sets with the priorities that it has them written."""

    def __init__(self, *, slots: int = 4, estimator: CostEstimator | None = None, **options: object) -> None:
        self.slots = slots
        self.scheduler = FairScheduler(slots, estimator=estimator)
        self.ledger = Ledger(self.scheduler, **options)  # type: ignore[arg-type]
        self.task_sets: dict[Stage, TaskSet] = {}

    def add(
        self, now_s: float, stage: Stage, user: str, job: str, *, cost: float | None = 10.0, tasks: int = 10
    ) -> None:
        identity = JobIdentity(user, f"{user} {job}", f"{user}: query", cost)
        self.task_sets[stage] = TaskSet(stage)
        self.write(self.ledger.add_task_set(now_s, stage, identity, self.task_sets[stage], tasks=tasks))

    def report(self, now_s: float, **stages: StageProgress) -> None:
        reports = {(int(name[1:]), 0): progress for name, progress in stages.items()}
        self.write(self.ledger.report(now_s, reports, slots=self.slots))

    def write(self, changes: Changes) -> None:
        for task_set, label in changes:
            task_set.priority = label
        self.scheduler.check()

    def order(self) -> list[int]:
        """Stages that have not ended, as Spark would offer them slots."""
        waiting = [self.task_sets[stage] for stage in self.ledger.active_stages()]
        return [task_set.stage[0] for task_set in sorted(waiting, key=lambda task_set: task_set.priority)]


def complete(core_s: float, tasks: int = 10) -> StageProgress:
    return StageProgress("complete", core_s, tasks, tasks)


def test_another_user_passes_a_flood() -> None:
    application = Application()
    for number in range(20):
        application.add(0.1, (number, 0), "alice", f"job {number}")
    application.add(0.3, (20, 0), "bob", "only job")
    assert application.order() == [0, 20, *range(1, 20)]


def test_users_are_ignored_under_cfq() -> None:
    application = Application(policy="cfq")
    for number in range(3):
        application.add(0.1, (number, 0), "alice", f"job {number}", cost=20.0)
    application.add(0.2, (3, 0), "alice", "short", cost=1.0)
    application.add(0.2, (4, 0), "bob", "long", cost=30.0)
    assert application.order() == [3, 0, 1, 2, 4]


def test_a_job_is_charged_what_its_stages_used() -> None:
    application = Application()
    application.add(0.0, (0, 0), "alice", "job")
    application.report(1.0, s0=complete(6.0))
    application.add(1.1, (1, 0), "alice", "job")
    application.report(1.2, s1=StageProgress("active", 1.0, 2, 10, running_tasks=4))
    assert application.ledger.history(0.0)[-1].running == {"alice": 4}
    (job,) = application.ledger.snapshot(1.2).jobs
    assert job.realised_core_s == 7.0
    application.report(1.5, s1=complete(4.0))
    application.report(3.0)
    (alice,) = application.ledger.snapshot(3.0).users or (None,)
    assert alice is None or alice.service_core_s == 10.0
    assert application.ledger.snapshot(30.0).jobs == ()


def test_costs_are_learned_of_jobs_that_succeed() -> None:
    estimator = CostEstimator()
    application = Application(estimator=estimator)
    application.add(0.0, (0, 0), "alice", "failed", cost=None)
    application.report(0.5, s0=StageProgress("failed", 3.0, 4, 10))
    application.report(2.0)
    assert estimator.estimate("alice: query") == 10.0
    application.add(2.1, (1, 0), "alice", "good", cost=None)
    application.report(2.5, s1=complete(4.0))
    application.report(4.0)
    assert estimator.estimate("alice: query") == 4.0


def test_a_retried_stage_counts_all_that_it_used_and_its_job_succeeds() -> None:
    estimator = CostEstimator()
    application = Application(estimator=estimator)
    application.add(0.0, (0, 0), "alice", "job", cost=None)
    application.report(0.5, s0=StageProgress("failed", 3.0, 4, 10))
    application.add(0.6, (0, 1), "alice", "job", cost=None, tasks=6)
    application.write(application.ledger.report(1.0, {(0, 1): complete(5.0, 6)}, slots=4))
    application.report(3.0)
    assert estimator.estimate("alice: query") == 8.0


def test_a_cancelled_job_that_never_ran_is_refunded() -> None:
    application = Application()
    application.add(0.0, (0, 0), "alice", "cancelled", cost=1000.0)
    application.report(0.1, s0=StageProgress("failed", 0.0, 0, 10))
    application.report(1.2)
    application.add(1.3, (1, 0), "alice", "next", cost=10.0)
    application.add(1.3, (2, 0), "bob", "job", cost=15.0)
    assert application.order() == [1, 2]


def test_a_block_that_is_left_ends_its_job_at_once() -> None:
    application = Application(idle_s=1000.0)
    application.add(0.0, (0, 0), "alice", "job")
    application.ledger.close_job("alice job")
    application.report(0.5, s0=StageProgress("active", tasks=10))
    assert application.ledger.sizes() == {"jobs": 1, "task_sets": 1}
    application.report(1.0, s0=complete(10.0))
    application.report(30.0)
    assert application.ledger.sizes() == {"jobs": 0, "task_sets": 0}


def test_a_stage_that_the_status_store_lost_ends_in_time() -> None:
    application = Application()
    application.add(0.0, (0, 0), "alice", "job")
    application.report(1.0, s0=StageProgress("lost"))  # the store may not know it yet
    assert application.ledger.active_stages() == [(0, 0)]
    application.report(60.0, s0=StageProgress("lost"))
    application.report(62.0)
    assert application.ledger.sizes() == {"jobs": 0, "task_sets": 0}


def test_an_attempt_ends_when_the_store_knows_a_later_one() -> None:
    application = Application()
    application.add(0.0, (0, 0), "alice", "job")
    application.add(0.1, (0, 1), "alice", "job")
    application.report(0.2, s0=StageProgress("lost"))
    assert application.ledger.active_stages() == [(0, 1)]


def test_a_late_stage_takes_its_job_up_again() -> None:
    application = Application()
    application.add(0.0, (0, 0), "alice", "job", cost=40.0)
    application.add(0.0, (1, 0), "alice", "other", cost=100.0)
    application.report(0.5, s0=complete(40.0))
    application.report(2.0)
    application.add(2.1, (2, 0), "alice", "job", cost=40.0)
    assert application.scheduler.virtual_finish("alice job") == 80.0  # 20 tasks of 4 s, from where it began
    assert application.order() == [2, 1]


def test_priorities_that_moved_while_they_were_written_are_written_again() -> None:
    application = Application()
    application.add(0.0, (0, 0), "alice", "job")
    label = application.task_sets[0, 0].priority
    written = [(application.task_sets[0, 0], label - 5)]
    assert application.ledger.stale(written) == [(application.task_sets[0, 0], label)]
    assert application.ledger.stale([(application.task_sets[0, 0], label)]) == []


def test_spark_sees_the_order_of_the_scheduler_throughout() -> None:
    rng = np.random.default_rng(3)
    application = Application(slots=2)
    served: Counter[int] = Counter()
    now_s = 0.0
    for number in range(300):
        now_s += float(rng.exponential(0.5))
        user = f"user {rng.integers(5)}"
        application.add(
            now_s, (number, 0), user, f"job {number // 2}", cost=float(rng.uniform(0.1, 20)), tasks=10
        )
        reports = {}
        for stage in application.order()[:2]:
            served[stage] += int(rng.integers(0, 5))
            done = min(10, served[stage])
            state = "complete" if done == 10 else "active"
            reports[f"s{stage}"] = StageProgress(state, done * 0.4, done, 10, 10 - done)  # type: ignore[arg-type]
        application.report(now_s, **reports)
        assert application.order() == [stage for stage, _ in application.scheduler.order()]  # type: ignore[misc]


def test_two_threads_never_wait_for_each_other() -> None:
    application = Application()

    def add() -> None:
        for number in range(500):
            application.ledger.add_task_set(
                number / 100,
                (number, 0),
                JobIdentity("alice", f"alice {number}", "alice: q", 1.0),
                object(),
                tasks=1,
            )

    adding = threading.Thread(target=add)
    adding.start()
    while adding.is_alive():
        active = application.ledger.active_stages()
        application.ledger.stale(
            application.ledger.report(5.0, dict.fromkeys(active, complete(1.0, 1)), slots=4)
        )
    adding.join()
    application.ledger.report(
        100.0, dict.fromkeys(application.ledger.active_stages(), complete(1.0, 1)), slots=4
    )
    application.ledger.report(200.0, {}, slots=4)
    application.scheduler.check()
    assert application.ledger.sizes() == {"jobs": 0, "task_sets": 0}


def test_memory_is_flat() -> None:
    application = Application(max_samples=10)
    sizes = []
    for number in range(3000):
        now_s = number * 0.5
        identity = JobIdentity(f"user {number % 50}", f"job {number}", f"class {number % 20}", None)
        application.ledger.add_task_set(now_s, (number, 0), identity, object(), tasks=4)
        application.ledger.report(now_s + 0.4, {(number, 0): complete(1.5, 4)}, slots=4)
        sizes.append(application.ledger.sizes()["jobs"] + sum(application.scheduler.sizes().values()))
    assert max(sizes[2000:]) <= max(sizes[500:1000]) + 2
    assert len(application.ledger.history(0.0)) == 10
