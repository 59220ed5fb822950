"""The virtual clock: worked examples, the fluid oracle, and what happens to corrected costs."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.fairqueue.clock import VirtualClock
from jobs.fairqueue.errors import FairQueueParameterError, UnknownJobError
from tests.oracles.gps import FluidJob, fluid, virtual_finishes


def finishes(clock: VirtualClock, *jobs: str) -> list[float]:
    return [clock.virtual_finish(job) for job in jobs]


def test_worked_example() -> None:
    clock = VirtualClock(4)
    clock.advance(0)
    clock.add("a8", "A", 8)
    clock.add("a4", "A", 4)
    assert finishes(clock, "a8", "a4") == [12, 4]
    clock.advance(1)
    assert clock.add("b", "B", 4) == ["b"]
    assert finishes(clock, "b") == [8]
    clock.advance(1.5)
    assert set(clock.add("a1", "A", 1)) == {"a1", "a4", "a8"}
    assert finishes(clock, "a1", "a4", "a8", "b") == [1, 5, 13, 8]
    clock.advance(2)
    clock.add("c", "C", 2)
    assert finishes(clock, "c") == [8]
    clock.check()
    clock.advance(1e6)
    assert clock.virtual_time == 13
    clock.check()


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[FluidJob], dict[str, Fraction], int]:
    fractions = st.integers(1, 80).map(lambda number: Fraction(number, 8))
    gaps = st.one_of(st.just(Fraction(0)), st.integers(0, 40).map(lambda number: Fraction(number, 8)))
    users = ["a", "b", "c", "d"]
    weights = {user: draw(st.sampled_from([1, 2, 3, Fraction(1, 2)]).map(Fraction)) for user in users}
    now_s, jobs = Fraction(0), []
    for _ in range(draw(st.integers(1, 14))):
        now_s += draw(gaps)
        jobs.append(FluidJob(draw(st.sampled_from(users)), now_s, draw(fractions)))
    return jobs, weights, draw(st.integers(1, 8))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(workloads())
def test_against_the_fluid(workload: tuple[list[FluidJob], dict[str, Fraction], int]) -> None:
    """Virtual time, departures and virtual finishes after each arrival are those of the fluid."""
    jobs, weights, slots = workload
    clock = VirtualClock(slots, weights={user: float(weight) for user, weight in weights.items()})
    for number, job in enumerate(jobs):
        clock.advance(float(job.arrival_s))
        clock.add(str(number), job.user, float(job.cost_core_s))
        clock.check()
        oracle = fluid(jobs[: number + 1], weights, slots, job.arrival_s)
        assert clock.virtual_time == pytest.approx(float(oracle.virtual_time), rel=1e-12, abs=1e-12)
        for left, finish in virtual_finishes(jobs, weights, oracle).items():
            assert clock.virtual_finish(str(left)) == pytest.approx(float(finish), rel=1e-12)
    end_s = jobs[-1].arrival_s + 10**4
    oracle = fluid(jobs, weights, slots, end_s)
    clock.advance(float(end_s))
    assert not oracle.left_core_s
    assert clock.virtual_time == pytest.approx(float(oracle.virtual_time), rel=1e-12)
    assert {user.user: user.left_s for user in clock.users.values()} == pytest.approx(
        {user: float(time_s) for user, time_s in oracle.departed_s.items()}, rel=1e-12
    )
    assert all(clock.is_done(str(number)) for number in range(len(jobs)))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(workloads(), st.integers(0, 400))
def test_done_as_in_the_fluid(
    workload: tuple[list[FluidJob], dict[str, Fraction], int], eighths: int
) -> None:
    """A job is virtually done when equal sharing inside its user has finished it."""
    jobs, weights, slots = workload
    until_s = Fraction(eighths, 8) + Fraction(1, 10**6)
    clock = VirtualClock(slots, weights={user: float(weight) for user, weight in weights.items()})
    arrived = [job for job in jobs if job.arrival_s <= until_s]
    for number, job in enumerate(arrived):
        clock.advance(float(job.arrival_s))
        clock.add(str(number), job.user, float(job.cost_core_s))
    clock.advance(float(until_s))
    clock.catch_up()
    oracle = fluid(arrived, weights, slots, until_s)
    done = {number for number in range(len(arrived)) if clock.is_done(str(number))}
    near = {
        number for number, left in oracle.left_core_s.items() if left < Fraction(1, 10**8)
    }  # equal up to rounding
    assert oracle.end_s.keys() <= done | near
    assert done <= oracle.end_s.keys() | near


def test_weights_scale_shares() -> None:
    clock = VirtualClock(4, weights={"heavy": 3.0})
    clock.advance(0)
    clock.add("h", "heavy", 30)
    clock.add("l", "light", 10)
    assert finishes(clock, "h", "l") == [10, 10]
    clock.advance(5)  # V = 5 * 4 / 4
    assert clock.virtual_time == 5
    clock.set_weight("heavy", 1.0)  # 15 core-seconds are left to it, now at weight 1
    assert finishes(clock, "h") == [20]
    clock.check()
    clock.advance(100)
    assert clock.virtual_time == 20


def test_weight_changed_during_debt_keeps_the_debt() -> None:
    clock = VirtualClock(1, weights={"a": 1.0})
    clock.advance(0)
    clock.add("job", "a", 1)
    clock.advance(1)
    clock.correct({"job": 9})  # 9 core-seconds of debt
    clock.set_weight("a", 3.0)
    assert clock.users["a"].finish == pytest.approx(1 + 9 / 3)
    clock.check()


def test_time_stands_still_while_nobody_is_there_and_never_goes_back() -> None:
    clock = VirtualClock(2)
    clock.advance(100)
    assert clock.virtual_time == 0
    clock.add("a", "a", 4)
    clock.advance(101)
    assert clock.virtual_time == 2
    clock.advance(50)
    assert (clock.virtual_time, clock.now_s) == (2, 101)
    clock.advance(1000)
    assert clock.virtual_time == 4
    clock.add("b", "a", 4)
    assert clock.virtual_finish("b") == 8
    clock.set_slots(0)
    clock.advance(2000)
    assert clock.virtual_time == 4
    clock.set_slots(4)
    clock.advance(2000.5)
    assert clock.virtual_time == 6


def test_cost_corrected_while_in_the_chain_is_as_if_known_from_the_start() -> None:
    known, corrected = VirtualClock(4), VirtualClock(4)
    for clock, cost in ((known, 9.0), (corrected, 3.0)):
        clock.advance(0)
        clock.add("x", "a", cost)
        clock.add("y", "a", 5)
        clock.add("z", "b", 6)
    corrected.correct({"x": 6})
    assert finishes(known, "x", "y", "z") == finishes(corrected, "x", "y", "z") == [14, 5, 6]
    for clock in (known, corrected):
        clock.advance(100)
        clock.check()
    assert known.virtual_time == corrected.virtual_time == 14


def test_debt_outlives_departure() -> None:
    clock = VirtualClock(1)
    clock.advance(0)
    clock.add("liar", "a", 1)
    clock.add("long", "b", 100)
    clock.advance(4)  # V = 3: a has left, but its job goes on
    assert not clock.users["a"].backlogged
    clock.serve("liar", 10)
    clock.correct({"liar": 9})
    assert clock.users["a"].finish == 10
    clock.add("next", "a", 1)
    assert clock.virtual_finish("next") == 11
    clock.check()


def test_debt_of_a_user_without_jobs_is_kept_until_passed() -> None:
    clock = VirtualClock(1)
    clock.advance(0)
    clock.add("other", "b", 100)
    clock.add("short", "a", 1)
    clock.add("longer", "a", 2)
    clock.advance(5)  # V = 2.5, v = 1.5: the short one is virtually done
    clock.correct({"short": 0.2})
    clock.forget("short")
    clock.advance(6.2)  # V = 3.1, v > 2: so is the other one, but E = 3.2
    clock.catch_up()
    clock.forget("longer")
    assert clock.users["a"].known_jobs == 0
    clock.check()
    clock.add("next", "a", 1)
    assert clock.virtual_finish("next") == pytest.approx(4.2)
    clock.advance(1000)
    clock.forget("next")
    assert "a" not in clock.users
    clock.check()


@pytest.mark.parametrize(("pause_s", "finish"), [(2.0, 1 + 3), (3.0, 1 + 3 + 3)])
def test_grace_period_continues_where_the_user_stopped(pause_s: float, finish: float) -> None:
    """A job of 1 core-second goes on for 3 more: from its S, or, after a longer pause, from V."""
    clock = VirtualClock(1, grace_s=2.0)
    clock.advance(0)
    clock.add("job", "a", 1)
    clock.advance(1)
    clock.add("other", "b", 100)
    clock.advance(1 + pause_s / 2)
    assert clock.users["a"].left_s == 1
    clock.advance(1 + pause_s)
    clock.correct({"job": 3})
    assert clock.virtual_finish("job") == finish
    clock.check()


def test_refund_reaches_back_to_the_last_entry_only() -> None:
    clock = VirtualClock(1)
    clock.advance(0)
    clock.add("old", "a", 10)
    clock.advance(10)
    clock.add("other", "b", 100)
    clock.advance(30)  # a was away from V = 10 to 30
    clock.add("new", "a", 5)
    clock.correct({"old": -9})
    assert clock.virtual_finish("new") == 35
    clock.correct({"new": -9})  # not more than it was charged
    assert clock.users["a"].finish == 30
    clock.check()


def test_service_used_by_longer_jobs_counts_before_a_shorter_one() -> None:
    """A user behind its share catches up at once; one that has had its share gets no second one."""
    clock = VirtualClock(1)
    clock.advance(0)
    clock.add("x", "a", 10)
    clock.add("y", "a", 10)
    clock.add("other", "b", 100)
    clock.advance(16)  # V = 8
    clock.serve("x", 3)
    clock.add("short", "a", 1)
    assert finishes(clock, "short", "x", "y") == [4, 11, 21]
    assert clock.serve("x", 8) == ["short"]
    assert finishes(clock, "short", "x", "y") == [9, 11, 21]
    clock.check()


def test_what_other_jobs_use_moves_a_waiting_job_that_is_virtually_done() -> None:
    clock = VirtualClock(1)
    clock.advance(0)
    clock.add("other", "b", 100)
    for job in ("x", "y", "z"):
        clock.add(job, "a", 1)
    clock.advance(7)  # V = 3.5: a has left, and all its jobs wait
    assert finishes(clock, "x", "y", "z") == [1, 2, 3]
    clock.serve("x", 1)
    assert finishes(clock, "x", "y", "z") == [1, 2, 3]  # it was expected
    clock.serve("x", 3)
    assert set(clock.correct({"x": 5})) == {"x", "y", "z"}  # x is the last one now
    assert finishes(clock, "y", "z", "x") == [1 + 3, 2 + 3, 8]
    clock.serve("x", 4)
    assert finishes(clock, "y", "z", "x") == [5, 6, 8]
    clock.serve("z", 0.5)
    assert finishes(clock, "y", "z", "x") == [5.5, 6, 8]
    clock.check()


def test_service_after_the_user_was_away_moves_its_old_jobs_on_from_where_they_were() -> None:
    clock = VirtualClock(1, weights={"a": 2.0})
    clock.advance(0)
    clock.add("other", "b", 100)
    clock.add("old", "a", 2)
    clock.advance(32)  # W = 3 until a leaves at V = 1, after 3 s
    assert clock.virtual_time == 30
    clock.add("new", "a", 8)
    assert finishes(clock, "old", "new") == [1, 34]
    clock.serve("new", 6)
    assert finishes(clock, "old", "new") == [1 + 3, 34]
    clock.check()
    clock.set_weight("a", 1.0)  # what lies before or after V counts double
    assert finishes(clock, "old", "new") == [30 - 2 * 26, 38]
    clock.check()


def test_a_forgotten_job_counts_as_used() -> None:
    clock = VirtualClock(1)
    clock.advance(0)
    for job in ("x", "y", "z"):
        clock.add(job, "a", 1)
    clock.advance(10)
    clock.serve("y", 0.25)
    assert finishes(clock, "x") == [1.25]
    assert clock.forget("y") == ["x"]
    assert finishes(clock, "x", "z") == [2, 3]
    assert clock.forget("z") == ["x"]
    assert clock.forget("x") == []
    assert not clock.users


def test_equal_departures_and_long_times() -> None:
    """Thousands of departures at equal virtual times, over a year: nothing drifts and nobody is left."""
    generator = random.Random(7)
    clock = VirtualClock(3, default_weight=0.1)
    now_s = 0.0
    for day in range(365):
        now_s = day * 86_400 + generator.random()
        clock.advance(now_s)
        for user in range(20):
            clock.add(f"{day}-{user}", f"user-{user}", 0.3)
        clock.check()
        before = clock.virtual_time
        clock.advance(now_s + 1.9)
        assert clock.virtual_time < before + 3
        clock.advance(now_s + 2.1)  # 20 * 0.3 / 3 = 2 seconds
        assert math.isclose(clock.virtual_time, 3.0 * (day + 1), rel_tol=1e-12)
        assert not any(user.backlogged for user in clock.users.values())
        for user in range(20):
            clock.forget(f"{day}-{user}")
        assert not clock.users


def test_bad_values() -> None:
    for weight in (0, -1, math.nan, math.inf):
        with pytest.raises(
            FairQueueParameterError, match="'weight' of user 'bob' must be positive and finite"
        ):
            VirtualClock(4, weights={"bob": weight})
        with pytest.raises(
            FairQueueParameterError, match="'weight' of user 'bob' must be positive and finite"
        ):
            VirtualClock(4).set_weight("bob", weight)
    with pytest.raises(FairQueueParameterError, match="'weight' of user 'bob' must be from 1e-06 to 1e\\+06"):
        VirtualClock(4, weights={"bob": 1e9})
    with pytest.raises(FairQueueParameterError, match="'default_weight' must be positive"):
        VirtualClock(4, default_weight=0)
    with pytest.raises(FairQueueParameterError, match="'slots' must be a whole number of at least 1"):
        VirtualClock(0)
    with pytest.raises(FairQueueParameterError, match="'grace_s' must be finite and at least 0"):
        VirtualClock(1, grace_s=-1)
    clock = VirtualClock(4)
    with pytest.raises(FairQueueParameterError, match="'now_s' must be finite"):
        clock.advance(math.nan)
    clock.advance(0)
    with pytest.raises(
        FairQueueParameterError, match="'cost_core_s' of job 'x' must be finite and at least 0"
    ):
        clock.add("x", "a", -1)
    clock.add("x", "a", 1)
    with pytest.raises(FairQueueParameterError, match="'job' 'x' is in the virtual clock already"):
        clock.add("x", "a", 1)
    with pytest.raises(FairQueueParameterError, match="must be virtually done"):
        clock.forget("x")
    with pytest.raises(UnknownJobError, match="got 'y'"):
        clock.virtual_finish("y")
