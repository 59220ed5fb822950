"""The ledger between Spark's task sets and the fair scheduler, driven without Spark."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np

from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.scheduler import FairScheduler
from jobs.fairqueue.spark.identity import JobIdentity
from jobs.fairqueue.spark.ledger import Change, Changes, Ledger
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
        self.ledger = Ledger(self.scheduler, **{"idle_s": 1.0, **options})  # type: ignore[arg-type]
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
        for _, task_set, label in changes:
            task_set.priority = label
        assert self.ledger.written(changes) == []
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
    application.ledger.open_job("alice job")
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
    assert application.scheduler.virtual_finish("alice job") > 40.0  # on from where it began
    assert application.order() == [2, 1]


def test_priorities_that_moved_while_they_were_written_are_written_again() -> None:
    application = Application()
    application.add(0.0, (0, 0), "alice", "job")
    task_set = application.task_sets[0, 0]
    right = Change((0, 0), task_set, task_set.priority)
    assert application.ledger.written([right._replace(priority=right.priority - 5)]) == [right]
    assert application.ledger.report(0.5, {}, slots=4) == [right]
    assert application.ledger.written([right]) == []
    assert application.ledger.report(0.6, {}, slots=4) == []


def test_priorities_that_could_not_be_written_come_again() -> None:
    application = Application()
    ledger = application.ledger
    application.add(0.0, (0, 0), "alice", "job", cost=10.0)
    identity = JobIdentity("alice", "alice short", "alice: query", 1.0)
    task_set = TaskSet((1, 0))
    fresh = ledger.add_task_set(0.1, (1, 0), identity, task_set, tasks=1)
    assert [change.task_set for change in fresh] == [task_set]
    second = ledger.add_task_set(0.2, (2, 0), identity, TaskSet((2, 0)), tasks=1)
    assert [change.stage for change in second] == [(2, 0)]  # Spark waits for these, so only what is new
    again = ledger.report(0.3, {}, slots=4)
    assert again == [*fresh, *second]
    assert ledger.written(again[:1]) == second
    assert ledger.report(0.4, {(2, 0): complete(1.0, 1)}, slots=4) == []


def test_a_cancelled_job_is_charged_for_the_tasks_that_run_on() -> None:
    estimator = CostEstimator()
    application = Application(estimator=estimator)
    application.add(0.0, (0, 0), "eve", "cancelled", cost=None)
    application.add(0.0, (1, 0), "eve", "next", cost=10.0)
    application.report(0.5, s0=StageProgress("active", 0.0, 0, 10, running_tasks=4))
    application.report(1.0, s0=StageProgress("failed", 0.0, 0, 10, running_tasks=4))
    assert [change for change in application.scheduler.order() if change == (0, 0)] == []
    assert application.ledger.history(0.0)[-1].running == {"eve": 4}
    application.report(5.0, s0=StageProgress("failed", 4.0, 1, 10, running_tasks=3))
    assert {job.job: job.state for job in application.ledger.snapshot(5.0).jobs}["eve cancelled"] == "running"
    application.report(6.0, s0=StageProgress("failed", 16.0, 4, 10))
    application.report(7.5)
    (eve,) = application.ledger.snapshot(7.5).users
    assert eve.service_core_s == 16.0
    assert application.scheduler.virtual_finish("eve next") == 26.0
    assert estimator.estimate("eve: query") == 10.0
    assert application.ledger.active_stages() == [(1, 0)]


def test_tasks_of_a_cancelled_job_whose_ends_are_never_told_are_waited_for_no_longer_than_stated() -> None:
    application = Application()
    application.add(0.0, (0, 0), "eve", "cancelled")
    running_on = StageProgress("failed", 3.0, 1, 10, running_tasks=2)
    application.report(1.0, s0=running_on)
    application.report(500.0, s0=running_on)
    assert application.ledger.sizes() == {"jobs": 1, "task_sets": 1}
    application.report(602.0, s0=running_on)
    application.report(604.0)
    assert application.ledger.sizes() == {"jobs": 0, "task_sets": 0}


def run_with_pauses(application: Application, pause_s: float, stages: int = 4) -> float:
    """A job of so many stages of 10 core-seconds each, between which the driver works."""
    now_s = 0.0
    for number in range(stages):
        application.add(now_s, (number, 0), "alice", "job", cost=None)
        application.report(now_s + 2.5, **{f"s{number}": complete(10.0)})
        for step in range(1, 11):
            application.report(now_s + 2.5 + step * pause_s / 10)
        now_s += 2.5 + pause_s
    return now_s


def test_a_job_that_pauses_is_learned_once_and_whole() -> None:
    estimator = CostEstimator()
    application = Application(estimator=estimator, idle_s=10.0)
    now_s = run_with_pauses(application, 5.0)
    assert estimator.error().count == 0
    application.report(now_s + 10.0)
    assert estimator.error().count == 1
    assert estimator.estimate("alice: query") == 40.0


def test_an_open_job_pauses_as_long_as_it_likes() -> None:
    estimator = CostEstimator()
    application = Application(estimator=estimator, idle_s=1.0)
    for _ in range(2):  # two threads in one block
        application.ledger.open_job("alice job")
    now_s = run_with_pauses(application, 300.0, stages=2)
    application.ledger.close_job("alice job")
    now_s += run_with_pauses(application, 300.0, stages=1)
    assert estimator.error().count == 0
    application.ledger.close_job("alice job")
    application.report(now_s)
    assert estimator.error().count == 1
    assert estimator.estimate("alice: query") == 30.0
    assert application.ledger.sizes() == {"jobs": 0, "task_sets": 0}


def test_a_job_that_goes_on_after_its_end_is_no_second_one_of_its_class() -> None:
    estimator = CostEstimator()
    application = Application(estimator=estimator, idle_s=1.0)
    application.add(0.0, (9, 0), "bob", "long", cost=1000.0)
    application.add(0.0, (0, 0), "alice", "job", cost=None)
    application.report(1.0, s0=complete(40.0))
    application.report(2.5)
    application.add(2.6, (1, 0), "alice", "job", cost=None)
    application.report(3.0, s1=complete(2.0))
    application.report(10.0)
    assert estimator.error().count == 1
    assert estimator.estimate("alice: query") == 40.0


def test_operations_that_pause_can_be_closed() -> None:
    application = Application(idle_s=10.0)
    operation = ("alice", "session", "operation")
    identity = JobIdentity("alice", "alice operation", "alice: query", operation=operation)
    application.write(application.ledger.add_task_set(0.0, (0, 0), identity, TaskSet((0, 0)), tasks=4))
    application.add(0.0, (1, 0), "alice", "job")
    assert application.ledger.paused_operations(5.0) == {}
    application.report(5.0, s0=complete(4.0), s1=complete(4.0))
    assert application.ledger.paused_operations(5.5) == {}
    assert application.ledger.paused_operations(6.0) == {"alice operation": operation}
    application.ledger.close_job("alice operation")
    assert application.ledger.paused_operations(7.0) == {}
    application.report(7.0)
    states = {job.job: job.state for job in application.ledger.snapshot(7.0).jobs}
    assert states == {"alice job": "idle"} | {name: "finished" for name in states if name != "alice job"}


def test_a_block_in_which_nothing_ran_leaves_nothing() -> None:
    ledger = Application().ledger
    ledger.close_job("alice job")
    ledger.open_job("alice job")
    ledger.close_job("alice job")
    assert not ledger._open


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
        application.ledger.written(
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


def test_a_job_of_which_nothing_is_known_counts_by_its_tasks() -> None:
    application = Application(default_task_s=0.5)
    application.add(0.0, (0, 0), "alice", "flood", cost=None, tasks=40)
    application.add(0.0, (1, 0), "bob", "small", cost=None, tasks=4)
    estimates = {job.user: job.estimated_core_s for job in application.ledger.snapshot(0.0).jobs}
    assert estimates == {"alice": 20.0, "bob": 2.0}
    assert application.order() == [1, 0]


def test_costs_of_jobs_without_a_class_of_their_own_are_learned_by_task() -> None:
    application = Application(default_task_s=0.5)
    application.add(0.0, (0, 0), "alice", "large", cost=None, tasks=100)
    application.report(1.0, s0=complete(200.0, 100))
    application.report(3.0)
    application.add(4.0, (1, 0), "alice", "small", cost=None, tasks=2)
    (small,) = (job for job in application.ledger.snapshot(4.0).jobs if job.job.endswith("small"))
    assert small.estimated_core_s == 4.0
