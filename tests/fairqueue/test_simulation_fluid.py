"""The ideal fluid schedule against schedules computed by hand, an oracle of shares and small steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.fairqueue.simulation.fluid import FluidSchedule, fluid_schedule, max_min_rates
from jobs.fairqueue.simulation.workload import Job
from tests.oracles.max_min import max_min_shares


def job(name: str, tasks: int, *, submit_s: float = 0.0, stages: int = 1, after: str | None = None) -> Job:
    return Job(name, name.partition("/")[0], ((1.0,) * tasks,) * stages, submit_s, after)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.floats(0.5, 64),
    st.lists(st.tuples(st.floats(0.01, 50), st.floats(0.1, 10)), min_size=1, max_size=8),
)
def test_rates_are_the_oracles(capacity: float, users: list[tuple[float, float]]) -> None:
    demands, weights = [demand for demand, _ in users], [weight for _, weight in users]
    found = max_min_rates(capacity, demands, weights)
    named = {str(i): demand for i, demand in enumerate(demands)}
    expected = max_min_shares(capacity, named, {str(i): weight for i, weight in enumerate(weights)})
    assert found == pytest.approx(list(expected.values()), abs=1e-9 * capacity)


def test_two_users_share_until_one_is_done() -> None:
    # 4 slots, two each. a ends at 2 s (4 tasks), b has 4 of 8 left and goes on with 4 slots for 1 s.
    fluid = fluid_schedule([job("a/0", 4), job("b/0", 8)], slots=4)
    assert fluid.finish_s == pytest.approx((2.0, 3.0))
    assert np.interp([1, 2, 3], fluid.time_s, fluid.service_core_s["b"]) == pytest.approx([2, 4, 8])


def test_what_a_user_cannot_use_goes_to_the_others() -> None:
    # a has one task, so one slot; b gets three, and uses them up to 1 s, then four.
    fluid = fluid_schedule([job("a/0", 1), job("b/0", 7)], slots=4)
    assert fluid.finish_s == pytest.approx((1.0, 2.0))
    uncapped = fluid_schedule([job("a/0", 1), job("b/0", 7)], slots=4, capped=False)
    assert uncapped.finish_s == pytest.approx((0.5, 2.0))


def test_weights_and_jobs_inside_a_user() -> None:
    # a has weight 3 of 4: 3 slots for two equal jobs, 1.5 each: 6 tasks take 4 s; b has had 4 of 12 then.
    jobs = [job("a/0", 6), job("a/1", 6), job("b/0", 12)]
    fluid = fluid_schedule(jobs, slots=4, weights={"a": 3.0})
    assert fluid.finish_s == pytest.approx((4.0, 4.0, 6.0))


def test_stages_and_jobs_that_wait() -> None:
    jobs = [job("a/0", 2, stages=2), job("a/1", 4, after="a/0"), job("b/0", 2, submit_s=10.0)]
    fluid = fluid_schedule(jobs, slots=4)
    assert fluid.submit_s == pytest.approx((0.0, 2.0, 10.0))
    assert fluid.finish_s == pytest.approx((2.0, 3.0, 11.0))


def in_small_steps(jobs: list[Job], slots: int, weights: dict[str, float], step_s: float) -> list[float]:
    """Ends of jobs of one stage, by serving everybody its share of a step after another."""
    left = [job.core_s for job in jobs]
    ends, now_s = [0.0] * len(jobs), 0.0
    while any(left):
        active = [i for i, job in enumerate(jobs) if job.submit_s <= now_s + 1e-12 and left[i] > 0]
        users = {jobs[i].user for i in active}
        caps = {i: float(len(jobs[i].stages[0])) for i in active}
        demands = {user: sum(caps[i] for i in active if jobs[i].user == user) for user in users}
        shares = max_min_shares(slots, demands, weights)
        for user in users:
            own = {str(i): caps[i] for i in active if jobs[i].user == user}
            for i, rate in max_min_shares(shares[user], own).items():
                left[int(i)] = max(0.0, left[int(i)] - rate * step_s)
                if left[int(i)] <= 1e-12:
                    left[int(i)], ends[int(i)] = 0.0, now_s + step_s
        now_s += step_s
    return ends


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.5])),
        min_size=1,
        max_size=7,
    )
)
def test_ends_are_those_of_small_steps(found: list[tuple[str, int, float]]) -> None:
    jobs = [job(f"{user}/{i}", tasks, submit_s=at_s) for i, (user, tasks, at_s) in enumerate(found)]
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    fluid = fluid_schedule(jobs, slots=3, weights=weights)
    step_s = 0.005
    steps = in_small_steps(jobs, 3, weights, step_s)
    assert fluid.finish_s == pytest.approx(steps, abs=(len(jobs) + 2) * step_s)
    check_service(jobs, fluid)


def check_service(jobs: list[Job], fluid: FluidSchedule) -> None:
    """All work is served, each user's its own, never more than the slots can."""
    for user, served in fluid.service_core_s.items():
        assert served[-1] == pytest.approx(sum(job.core_s for job in jobs if job.user == user))
    total = np.sum(list(fluid.service_core_s.values()), axis=0)
    assert np.all(np.diff(total) <= 3 * np.diff(fluid.time_s) + 1e-9)
