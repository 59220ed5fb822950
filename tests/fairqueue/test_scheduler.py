"""The scheduler: order of dispatch, what finished tasks change, and how little it remembers."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest

from jobs.errors import exit_code
from jobs.fairqueue.errors import FairQueueError, FairQueueParameterError, UnknownJobError
from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.scheduler import FairScheduler


def observe(scheduler: FairScheduler, now_s: float, job: str, core_s: float, tasks: int, known: int) -> None:
    scheduler.observe(now_s, job, finished_core_s=core_s, finished_tasks=tasks, known_tasks=known)
    scheduler.check()


def test_an_infrequent_user_comes_second_after_a_flood() -> None:
    scheduler = FairScheduler(32)
    for number in range(20):
        scheduler.submit_job(0.1, f"flood-{number}", "flood", cost_core_s=26.9)
        scheduler.add_stage(0.1, f"flood-{number}", number)
    scheduler.submit_job(0.3, "rare", "rare", cost_core_s=26.9)
    scheduler.add_stage(0.3, "rare", "rare")
    assert scheduler.order() == [0, "rare", *range(1, 20)]
    labels = [scheduler.label(stage) for stage in scheduler.order()]
    assert labels == sorted(labels)
    scheduler.check()


def test_all_stages_of_a_job_stand_together_and_late_ones_keep_its_place() -> None:
    scheduler = FairScheduler(1)
    scheduler.submit_job(0, "x", "a", cost_core_s=2)
    scheduler.add_stage(0, "x", "x0")
    scheduler.submit_job(0, "y", "b", cost_core_s=100)
    scheduler.add_stage(0, "y", "y0")
    scheduler.add_stage(1, "x", "x1")
    assert scheduler.order() == ["x0", "x1", "y0"]
    finish = scheduler.virtual_finish("x")
    scheduler.submit_job(50, "z", "c", cost_core_s=1)  # V = 48: x is long virtually done
    scheduler.add_stage(50, "z", "z0")
    scheduler.finish_stage(50, "x0")
    scheduler.add_stage(51, "x", "x2")
    assert scheduler.virtual_finish("x") == finish == 2
    assert scheduler.order() == ["x1", "x2", "z0", "y0"]
    scheduler.check()


def test_only_changed_labels_are_given() -> None:
    scheduler = FairScheduler(1)
    for number, cost in enumerate([4, 8, 12]):
        scheduler.submit_job(0, str(number), f"user-{number}", cost_core_s=cost)
        scheduler.add_stage(0, str(number), number)
    first = scheduler.take_changes()
    assert first.keys() == {0, 1, 2}
    assert scheduler.take_changes() == {}
    scheduler.submit_job(0, "3", "user-3", cost_core_s=6)
    assert scheduler.add_stage(0, "3", 3) == scheduler.add_stage(0, "3", 3)
    assert first[0] < scheduler.take_changes()[3] < first[1]


def test_finished_tasks_soon_outweigh_the_estimate() -> None:
    scheduler = FairScheduler(4)
    scheduler.submit_job(0, "x", "a", cost_core_s=20)
    scheduler.add_stage(0, "x", 0, tasks=20)  # a second each, it is said
    assert scheduler.virtual_finish("x") == 20
    observe(scheduler, 0.5, "x", 2.0, 4, 20)  # half a second each
    assert scheduler.virtual_finish("x") == pytest.approx(2 + 16 * (2 + 2 * 1) / 6)
    observe(scheduler, 1.0, "x", 2.5, 5, 20)  # 12.1: as good as before
    assert scheduler.virtual_finish("x") == pytest.approx(2 + 16 * (2 + 2 * 1) / 6)
    observe(scheduler, 1.0, "x", 8.0, 16, 20)
    assert scheduler.virtual_finish("x") == pytest.approx(8 + 4 * (8 + 2 * 1) / 18)
    scheduler.add_stage(1.0, "x", 1, tasks=20)  # 40 tasks now, and half a second each by the estimate
    assert scheduler.virtual_finish("x") == pytest.approx(20)
    scheduler.finish_job(9, "x", core_s=21.0)
    assert scheduler.snapshot(9).users[0].service_core_s == 21.0


def test_an_estimate_far_above_what_is_measured_does_not_stand_in_its_way() -> None:
    scheduler = FairScheduler(4)
    scheduler.submit_job(0, "x", "a", cost_core_s=1000)
    scheduler.add_stage(0, "x", 0, tasks=20)
    observe(scheduler, 0.5, "x", 2.0, 4, 20)
    assert scheduler.virtual_finish("x") == pytest.approx(2 + 16 * (2 + 2 * 4 * 0.5) / 6)


def test_a_default_that_rests_on_nothing_has_no_weight() -> None:
    scheduler = FairScheduler(4, estimator=CostEstimator(100.0))
    scheduler.submit_job(0, "x", "a", job_class="report")
    scheduler.add_stage(0, "x", 0, tasks=20)
    observe(scheduler, 0.5, "x", 2.0, 4, 20)
    assert scheduler.virtual_finish("x") == 10
    observe(scheduler, 0.6, "x", 4.0, 5, 20)  # nor later, when the class is known by this very job
    assert scheduler.virtual_finish("x") == 16


def test_one_cold_first_task_does_not_put_a_known_job_behind_all_others() -> None:
    """Half a second per task, but four times as long for the first, in which a worker starts."""
    scheduler = FairScheduler(2)
    for number, user in enumerate("abcdefgh"):
        scheduler.submit_job(0, user, user, cost_core_s=4.0 if user == "a" else 10.0)
        scheduler.add_stage(0, user, number, tasks=8)
    observe(scheduler, 2.0, "a", 2.0, 1, 8)  # 16 by the mean alone
    assert scheduler.virtual_finish("a") == pytest.approx(2 + 7 * (2 + 2 * 0.5) / 3)
    assert scheduler.order()[0] == 0
    observe(scheduler, 2.5, "a", 3.5, 4, 8)
    assert scheduler.virtual_finish("a") == pytest.approx(3.5 + 4 * (3.5 + 2 * 0.5) / 6)
    assert scheduler.order()[0] == 0


def test_stages_to_come_keep_their_share_of_the_first_estimate() -> None:
    estimator = CostEstimator()
    estimator.learn("report", 100.0, stages=4)
    scheduler = FairScheduler(4, estimator=estimator)
    scheduler.submit_job(0, "x", "a", job_class="report")
    scheduler.add_stage(0, "x", 0, tasks=10)  # 2.5 each, it is thought
    observe(scheduler, 1, "x", 14.0, 2, 10)
    assert scheduler.virtual_finish("x") == 14 + 8 * (14 + 2 * 2.5) / 4 + 100 * 3 / 4
    scheduler.submit_job(0, "y", "b", cost_core_s=100, stages=2)
    scheduler.add_stage(0, "y", 1, tasks=10)
    before = scheduler.virtual_finish("y")
    observe(scheduler, 1, "y", 4.0, 2, 10)
    assert scheduler.virtual_finish("y") - before == pytest.approx(4 + 8 * (4 + 2 * 5) / 4 + 50 - 100)


def test_service_without_a_finished_task_is_charged_too() -> None:
    scheduler = FairScheduler(4)
    scheduler.submit_job(0, "x", "a", cost_core_s=1)
    scheduler.add_stage(0, "x", 0, tasks=10)
    observe(scheduler, 1, "x", 6.0, 0, 10)  # in tasks that were killed
    assert scheduler.virtual_finish("x") == 6


def test_service_beyond_the_estimate_is_charged_at_once() -> None:
    scheduler = FairScheduler(1)
    scheduler.submit_job(0, "liar", "a", cost_core_s=1)
    scheduler.submit_job(0, "long", "b", cost_core_s=100)
    scheduler.add_stage(0, "liar", "liar", tasks=4)
    scheduler.add_stage(0, "long", "long", tasks=100)
    assert scheduler.order() == ["liar", "long"]
    observe(scheduler, 60, "liar", 60.0, 2, 4)
    assert scheduler.virtual_finish("liar") > scheduler.virtual_finish("long")
    assert scheduler.order() == ["long", "liar"]
    assert scheduler.snapshot(60).jobs[0].estimated_core_s == 60 + 2 * (60 + 2 * 0.25) / 4


def test_jobs_that_wait_learn_from_their_like() -> None:
    """The first measured job of a class tells about the others at once: they do not overtake it."""
    scheduler = FairScheduler(4, estimator=CostEstimator(10.0))
    for number in range(3):
        scheduler.submit_job(0, str(number), "a", job_class="report", size=number + 1.0)
        scheduler.add_stage(0, str(number), number, tasks=10)
    scheduler.submit_job(0, "other", "a", job_class="another")
    assert [scheduler.virtual_finish(str(number)) for number in range(3)] == [10, 20, 30]
    observe(scheduler, 0, "0", 6.0, 2, 10)  # 30 in all, and 30 per unit of size
    assert [scheduler.virtual_finish(str(number)) for number in range(3)] == [10 + 30, 40 + 60, 100 + 90]
    assert scheduler.virtual_finish("other") == 10 + 6  # it goes first now; 6 have been used after it
    scheduler.finish_job(0, "0", core_s=20.0)
    assert scheduler.virtual_finish("1") == 10 + 20 + 40


@pytest.mark.parametrize("declared", [0.0, 1e-6, 0.002])
def test_what_one_job_has_had_counts_before_the_users_other_jobs(declared: float) -> None:
    """Jobs that look as if they cost nothing are virtually done at once; they do not go first for it."""
    scheduler = FairScheduler(4)
    for number in range(20):
        scheduler.submit_job(0, f"liar-{number}", "liar", cost_core_s=declared)
        scheduler.add_stage(0, f"liar-{number}", number, tasks=10)
    scheduler.submit_job(0, "honest", "honest", cost_core_s=8)
    scheduler.add_stage(0, "honest", "honest", tasks=16)
    observe(scheduler, 1, "liar-0", 4.0, 8, 10)
    assert scheduler.order()[0] == 1  # a share of 4 has been had, not one of 8
    assert scheduler.virtual_finish("liar-1") == pytest.approx(4, abs=0.1)
    observe(scheduler, 2, "liar-1", 4.5, 9, 10)
    assert scheduler.order()[0] == "honest"
    scheduler.finish_stage(2, 0)
    scheduler.finish_job(2, "liar-0", core_s=5.0)
    assert scheduler.virtual_finish("liar-2") == pytest.approx(9.5, abs=0.1)
    assert scheduler.order()[0] == "honest"


def test_the_largest_declaration_is_still_corrected_exactly() -> None:
    scheduler = FairScheduler(1)
    scheduler.submit_job(0, "x", "a", cost_core_s=1e9)
    scheduler.submit_job(0, "y", "a", cost_core_s=20.0)
    observe(scheduler, 0, "x", 15.0, 10, 10)
    assert scheduler.virtual_finish("x") == pytest.approx(15.0, abs=1e-6)
    assert scheduler.virtual_finish("y") == pytest.approx(35.0, abs=1e-6)


def test_nothing_is_learned_from_a_job_that_was_not_seen() -> None:
    estimator = CostEstimator(10.0)
    scheduler = FairScheduler(1, estimator=estimator)
    scheduler.submit_job(0, "unseen", "a", job_class="report")
    scheduler.finish_job(0, "unseen")
    scheduler.submit_job(0, "failed", "a", job_class="report")
    observe(scheduler, 0, "failed", 5.0, 1, 100)
    assert estimator.estimate("report") == 500.0  # as long as it runs
    scheduler.finish_job(0, "failed", core_s=500.0, learn=False)
    assert (len(estimator), estimator.error().count) == (0, 0)
    assert scheduler.sizes()["unmeasured"] == 0


def test_a_job_that_never_ran_is_refunded() -> None:
    scheduler = FairScheduler(1)
    scheduler.submit_job(0, "gone", "a", cost_core_s=50)
    scheduler.submit_job(0, "other", "b", cost_core_s=50)
    scheduler.finish_job(0, "gone", core_s=0, learn=False)
    scheduler.submit_job(0, "next", "a", cost_core_s=5)
    assert scheduler.virtual_finish("next") == 5
    scheduler.check()


def test_a_finished_job_goes_on_where_it_was() -> None:
    scheduler = FairScheduler(1)
    scheduler.submit_job(0, "x", "a", cost_core_s=5)
    scheduler.submit_job(0, "y", "b", cost_core_s=50)
    scheduler.add_stage(0, "x", 0)
    scheduler.finish_job(5, "x", core_s=5.0)
    assert scheduler.snapshot(5).jobs[0].state == "finished"
    scheduler.submit_job(5, "x", "someone else", cost_core_s=1)
    assert scheduler.virtual_finish("x") == 5
    snapshot = scheduler.snapshot(5)
    assert (snapshot.jobs[0].user, snapshot.jobs[0].state) == ("a", "waiting")
    scheduler.check()


@pytest.mark.parametrize("declared", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_a_wrong_declaration_gains_nothing(declared: float) -> None:
    """Two users with one job at a time; one declares from a tenth to ten times of what its jobs need.

    Declaring too much costs some service: the job waits for long, and there is no credit for having waited.
    """
    scheduler = FairScheduler(1)
    service = {"honest": 0.0, "liar": 0.0}
    number, job, task = 0, dict.fromkeys(service, ""), dict.fromkeys(service, 0)
    for now_s in range(4000):
        for user in service:
            if not job[user]:
                number += 1
                job[user], task[user] = str(number), 0
                cost = 10.0 * (declared if user == "liar" else 1.0)
                scheduler.submit_job(now_s, job[user], user, cost_core_s=cost)
                scheduler.add_stage(now_s, job[user], user, tasks=10)
        user = str(scheduler.order()[0])  # one task of a second
        service[user] += 1
        task[user] += 1
        observe(scheduler, now_s + 1, job[user], float(task[user]), task[user], 10)
        if task[user] == 10:
            scheduler.finish_stage(now_s + 1, user)
            scheduler.finish_job(now_s + 1, job[user])
            job[user] = ""
    assert service["liar"] <= 2000 * 1.01
    assert service["liar"] >= (2000 * 0.99 if declared <= 1 else 1800)


def test_snapshot_is_json() -> None:
    scheduler = FairScheduler(4, weights={"a": 2.0})
    scheduler.submit_job(0, "x", "a", cost_core_s=8, job_class="report")
    scheduler.add_stage(0, "x", (3, 0), tasks=16)
    scheduler.observe(1, "x", finished_core_s=2.0, finished_tasks=4, known_tasks=16, running_tasks=4)
    document = json.loads(json.dumps(dataclasses.asdict(scheduler.snapshot(1))))
    assert document["users"] == [
        {
            "user": "a",
            "weight": 2.0,
            "backlogged": True,
            "virtual_time": 4.0,
            "virtual_finish": 4.0,
            "start": 0.0,
            "service_core_s": 2.0,
            "unfinished_jobs": 1,
        }
    ]
    assert (document["jobs"][0]["state"], document["jobs"][0]["running_tasks"]) == ("running", 4)
    assert document["virtual_time"] == 2.0


def test_many_jobs_leave_nothing_behind() -> None:
    """Users and job classes come and go, estimates are wrong, jobs fail: the sizes stay where they were."""
    generator = random.Random(11)
    scheduler = FairScheduler(8, estimator=CostEstimator(max_classes=50))
    open_jobs: list[int] = []
    largest: dict[str, int] = {}
    count = 20_000
    for number in range(count):
        now_s = number * 1.0
        scheduler.submit_job(now_s, str(number), f"user-{number // 50}", job_class=f"class-{number % 200}")
        scheduler.add_stage(now_s, str(number), number, tasks=10)
        open_jobs.append(number)
        while len(open_jobs) > 20:
            over = open_jobs.pop(generator.randrange(len(open_jobs)))
            core_s = generator.lognormvariate(1.0, 0.8)
            scheduler.observe(now_s, str(over), finished_core_s=core_s / 2, finished_tasks=5, known_tasks=10)
            scheduler.finish_stage(now_s, over)
            scheduler.finish_job(now_s, str(over), core_s=core_s, learn=generator.random() < 0.9)
        scheduler.take_changes()
        if number % 1000 == 999:
            scheduler.check()
            for name, size in scheduler.sizes().items():
                largest[name] = max(largest.get(name, 0), size)
    assert largest["stages"] == largest["labels"] == 20
    assert largest["jobs"] < 100
    assert largest["users"] < 100
    assert largest["job_classes"] == 50
    for number in open_jobs:
        scheduler.finish_stage(count, number)
        scheduler.finish_job(count, str(number), core_s=1.0)
    scheduler.snapshot(count + 1e4)
    scheduler.check()
    assert {name: size for name, size in scheduler.sizes().items() if size} == {"job_classes": 50}


def test_late_reports_and_unknown_names() -> None:
    scheduler = FairScheduler(1)
    scheduler.observe(0, "never", finished_core_s=1.0, finished_tasks=1, known_tasks=1)
    scheduler.finish_job(0, "never")
    scheduler.finish_stage(0, "never")
    with pytest.raises(
        UnknownJobError, match="'job' must be one that was submitted \\(got 'never'\\)"
    ) as raised:
        scheduler.add_stage(0, "never", 1)
    assert exit_code(raised.value) == 2
    with pytest.raises(UnknownJobError):
        scheduler.virtual_finish("never")
    with pytest.raises(KeyError):
        scheduler.label("never")
    scheduler.submit_job(0, "x", "a", cost_core_s=10)
    observe(scheduler, 1, "x", 4.0, 4, 10)
    observe(scheduler, 2, "x", 3.0, 3, 8)  # older than the one before
    assert scheduler.snapshot(2).jobs[0].realised_core_s == 4.0


def test_bad_values() -> None:
    scheduler = FairScheduler(4)
    with pytest.raises(FairQueueParameterError, match="'job' and 'user' must not be empty"):
        scheduler.submit_job(0, "x", "")
    for cost in (-1, math.nan, math.inf):
        with pytest.raises(FairQueueParameterError, match="'cost_core_s' of job 'x' must be finite"):
            scheduler.submit_job(0, "x", "a", cost_core_s=cost)
        with pytest.raises(FairQueueParameterError, match="'size' of job 'x' must be finite"):
            scheduler.submit_job(0, "x", "a", size=cost)
        with pytest.raises(FairQueueParameterError, match="'finished_core_s' of job 'x' must be finite"):
            scheduler.observe(0, "x", finished_core_s=cost, finished_tasks=1, known_tasks=1)
        with pytest.raises(FairQueueParameterError, match="'core_s' of job 'x' must be finite"):
            scheduler.finish_job(0, "x", core_s=cost)
    with pytest.raises(FairQueueParameterError, match="'cost_core_s' of job 'x' must be at most 1e\\+09"):
        scheduler.submit_job(0, "x", "a", cost_core_s=1e10)
    for weight in (0, -2, math.nan):
        with pytest.raises(FairQueueError, match="'weight' of user 'bob' must be positive and finite"):
            scheduler.set_weight(0, "bob", weight)
    with pytest.raises(FairQueueParameterError, match="'slots'"):
        scheduler.set_slots(0, -1)
    assert scheduler.sizes()["jobs"] == 0
    scheduler.check()
