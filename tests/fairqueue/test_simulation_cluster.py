"""The simulated cluster and its policies, against schedules computed by hand and their invariants."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.fairqueue.errors import FairQueueParameterError
from jobs.fairqueue.simulation.cluster import Schedule, simulate
from jobs.fairqueue.simulation.policies import POLICIES
from jobs.fairqueue.simulation.workload import Job, idle_response_s, partitioned

ATR_S = 0.5


def job(name: str, tasks: int, *, submit_s: float = 0.0, task_s: float = 1.0, **more: object) -> Job:
    """A job with its true cost declared; its user is what stands before the slash of its name."""
    stages = ((task_s,) * tasks,)
    core_s = task_s * tasks
    return Job(name, name.partition("/")[0], stages, submit_s, declared_core_s=core_s, **more)  # type: ignore[arg-type]


def ends(
    jobs: list[Job], policy: str, slots: int, weights: dict[str, float] | None = None
) -> dict[str, float]:
    schedule = simulate(jobs, POLICIES[policy](slots, weights), slots=slots)
    return {job.name: end_s for job, end_s in zip(schedule.jobs, schedule.finish_s, strict=True)}


def test_fifo_runs_jobs_in_the_order_of_submission() -> None:
    jobs = [job("a/0", 4), job("b/0", 1, submit_s=0.5), job("a/1", 1, submit_s=0.25)]
    assert ends(jobs, "fifo", 2) == {"a/0": 2.0, "a/1": 3.0, "b/0": 3.0}
    assert ends(jobs, "fifo", 1) == {"a/0": 4.0, "a/1": 5.0, "b/0": 6.0}


def test_fair_gives_the_next_slot_to_the_job_with_fewest_running_tasks() -> None:
    # Slots 2. 0 s: both to a/0. 1 s: a/0 and b/0 have none running, one each; 2 s the same; 3 s: b/0 alone.
    jobs = [job("a/0", 4), job("b/0", 4, submit_s=0.5)]
    assert ends(jobs, "fair", 2) == {"a/0": 3.0, "b/0": 4.0}
    # It knows no users: two jobs of a get two thirds of three slots.
    jobs = [job("a/0", 3), job("a/1", 3), job("b/0", 3)]
    assert ends(jobs, "fair", 3) == {"a/0": 3.0, "a/1": 3.0, "b/0": 3.0}


def test_pools_keep_the_order_inside_a_user_and_ujf_shares_there_too() -> None:
    # Two slots for each user. In pools a/0 has both of a's until it is done; under UJF it has one of them.
    jobs = [job("a/0", 4), job("a/1", 4), job("b/0", 8)]
    assert ends(jobs, "pools", 4) == {"a/0": 2.0, "a/1": 4.0, "b/0": 4.0}
    assert ends(jobs, "ujf", 4) == {"a/0": 4.0, "a/1": 4.0, "b/0": 4.0}


def test_pools_follow_the_weights() -> None:
    jobs = [job("a/0", 9), job("b/0", 9)]
    found = ends(jobs, "ujf", 4, {"a": 3.0, "b": 1.0})
    assert found == {"a/0": 3.0, "b/0": 5.0}  # 3 to 1 until 3 s, then b alone with 6 tasks left


def test_uwfq_runs_jobs_by_virtual_finish() -> None:
    # R = 1. a: D = 4, 8; b: D = 2. So b first, then a's in turn; FIFO would make b wait for 8 s.
    jobs = [job("a/0", 4), job("a/1", 4), job("b/0", 2)]
    assert ends(jobs, "uwfq", 1) == {"b/0": 2.0, "a/0": 6.0, "a/1": 10.0}
    # With weight 4, a's D are 1 and 2; the tie with b's 2 goes to the one submitted first.
    assert ends(jobs, "uwfq", 1, {"a": 4.0}) == {"a/0": 4.0, "a/1": 8.0, "b/0": 10.0}


def test_cfq_does_not_know_users() -> None:
    # By itself every job has D = S + L: shortest first among those submitted together, whoever they are of.
    jobs = [job("a/0", 1), job("a/1", 1), job("b/0", 2)]
    assert ends(jobs, "cfq", 1) == {"a/0": 1.0, "a/1": 2.0, "b/0": 4.0}
    # With users, a's second job has D = 2 as b's, and was submitted before; a third would come after b's.
    jobs.append(job("a/2", 1))
    assert ends(jobs, "cfq", 1) == {"a/0": 1.0, "a/1": 2.0, "a/2": 3.0, "b/0": 5.0}
    assert ends(jobs, "uwfq", 1) == {"a/0": 1.0, "a/1": 2.0, "b/0": 4.0, "a/2": 5.0}


def test_a_stage_starts_when_the_one_before_it_ends() -> None:
    two_stages = Job("a/0", "a", ((1.0, 2.0), (1.0, 1.0)), declared_core_s=5.0)
    schedule = simulate([two_stages], POLICIES["uwfq"](2, None), slots=2)
    assert [(task.start_s, task.end_s) for task in schedule.tasks] == [(0, 1), (0, 2), (2, 3), (2, 3)]


def test_a_job_that_waits_for_another_is_submitted_at_its_end() -> None:
    jobs = [job("a/0", 3), job("a/1", 1, after="a/0"), job("a/2", 1, after="a/1", submit_s=9.0)]
    schedule = simulate(jobs, POLICIES["fifo"](1, None), slots=1)
    assert schedule.submit_s == (0.0, 3.0, 9.0)
    assert schedule.response_s == (3.0, 1.0, 1.0)
    assert schedule.makespan_s == 10.0
    assert [later.after for later in schedule.as_submitted()] == [None, None, None]


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[Job], int]:
    jobs = []
    for number in range(draw(st.integers(1, 12))):
        user = draw(st.sampled_from("abc"))
        stages = draw(
            st.lists(
                st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=6), min_size=1, max_size=3
            )
        )
        wait = draw(st.booleans()) and number > 0
        jobs.append(
            Job(
                str(number),
                user,
                tuple(map(tuple, stages)),
                submit_s=draw(st.sampled_from([0.0, 0.3, 2.0, 5.0])),
                after=str(draw(st.integers(0, number - 1))) if wait else None,
                job_class=draw(st.sampled_from([None, "class"])),
                declared_core_s=draw(st.sampled_from([None, 0.1, 1.0, 10.0])),
            )
        )
    return jobs, draw(st.integers(1, 5))


def check_schedule(schedule: Schedule) -> None:
    """Every task once, one at a time on a slot, stages in turn, and no slot idle while a task waits."""
    for position, job in enumerate(schedule.jobs):
        own = [task for task in schedule.tasks if task.job == position]
        spans = Counter(round(task.end_s - task.start_s, 9) for task in own)
        assert spans == Counter(run_time_s for stage in job.stages for run_time_s in stage)
        assert min(task.start_s for task in own) >= schedule.submit_s[position]
        assert max(task.end_s for task in own) == schedule.finish_s[position]
        done = 0
        for stage in job.stages:
            later = own[done + len(stage) :]
            assert all(t.start_s >= max(x.end_s for x in own[done : done + len(stage)]) for t in later)
            done += len(stage)
    for slot in range(schedule.slots):
        times = [(task.start_s, task.end_s) for task in schedule.tasks if task.slot == slot]
        assert all(end_s <= start_s for (_, end_s), (start_s, _) in pairwise(times))
    check_work_conserving(schedule)


def check_work_conserving(schedule: Schedule) -> None:
    """While a task could run but did not, all slots were busy."""
    moments = {time_s for task in schedule.tasks for time_s in (task.start_s, task.end_s)}
    busy = {at: sum(task.start_s <= at < task.end_s for task in schedule.tasks) for at in moments}
    for position, job in enumerate(schedule.jobs):
        own = iter([task for task in schedule.tasks if task.job == position])
        ready_s = schedule.submit_s[position]
        for stage in job.stages:
            tasks = [next(own) for _ in stage]
            waited = [at for at in moments if ready_s <= at < max(task.start_s for task in tasks)]
            assert all(busy[at] == schedule.slots for at in waited)
            ready_s = max(task.end_s for task in tasks)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(workload=workloads())
def test_every_schedule_serves_all_and_idles_never(policy: str, workload: tuple[list[Job], int]) -> None:
    jobs, slots = workload
    schedule = simulate(jobs, POLICIES[policy](slots, {"a": 2.0}), slots=slots)
    check_schedule(schedule)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 2.5])), min_size=1, max_size=8))
def test_uwfq_and_cfq_agree_where_every_user_has_one_job(found: list[tuple[int, float]]) -> None:
    jobs = [job(f"user-{i}/0", tasks, submit_s=submit_s) for i, (tasks, submit_s) in enumerate(found)]
    both = [simulate(jobs, POLICIES[policy](3, None), slots=3).tasks for policy in ("uwfq", "cfq")]
    assert both[0] == both[1]


def test_partition_holds_the_work_in_tasks_of_at_most_the_advisory_time() -> None:
    assert partitioned(1.5, 0.5) == (0.5, 0.5, 0.5)
    tasks = partitioned(26.9, ATR_S)
    assert len(tasks) == 54
    assert sum(tasks) == pytest.approx(26.9)
    assert partitioned(0.1, ATR_S) == (0.1,)
    assert len(partitioned(0.3 * 3, 0.3)) == 3  # not four for the sake of a rounding


def test_idle_response_is_that_of_the_cluster_alone() -> None:
    jobs = [Job("a", "a", ((2.0, 1.0, 1.0, 3.0), (0.5,)))]
    assert idle_response_s(jobs[0], 2) == 5.5
    schedule = simulate(jobs, POLICIES["fair"](2, None), slots=2)
    assert schedule.response_s == (5.5,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Job("j", "u", ()), "'stages' of job 'j' must hold at least one task each"),
        (lambda: Job("j", "u", ((1.0,), ())), "'stages' of job 'j' must hold at least one task each"),
        (lambda: Job("j", "u", ((1.0, 0.0),)), "run times of job 'j' must be positive and finite (got 0.0)"),
        (lambda: Job("j", "u", ((1.0,),), -1.0), "'submit_s' of job 'j' must be finite and at least 0"),
        (lambda: partitioned(-1.0), "'core_s' must be positive and finite (got -1.0)"),
        (lambda: simulate([], POLICIES["fifo"](1, None), slots=0), "'slots' must be positive (got 0)"),
        (
            lambda: ends([job("a", 1), job("a", 1)], "fifo", 1),
            "names of jobs must be unique (got 'a' 2 times)",
        ),
        (
            lambda: ends([job("a", 1, after="b"), job("b", 1)], "fifo", 1),
            "'after' of job 'a' must name an earlier job (got 'b')",
        ),
    ],
)
def test_workloads_that_make_no_sense_are_refused(make: object, message: str) -> None:
    with pytest.raises(FairQueueParameterError) as caught:
        make()  # type: ignore[operator]
    assert message in str(caught.value)
