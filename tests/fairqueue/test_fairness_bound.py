"""No user falls behind its fluid share by more than the bound that the scheduler states.

Fully parallel jobs with known costs on ``R`` slots, tasks of at most ``A`` seconds, no preemption. The bound
is ``R A + max(w_u max_v(L_v / w_v), K R A)`` for a user of weight ``w_u`` among jobs of cost ``L_v``, with
``K`` other users.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.fairqueue.account import Account
from jobs.fairqueue.clock import VirtualClock
from jobs.fairqueue.scheduler import FairScheduler
from tests.oracles.gps import user_service

LONGEST_TASK_S = 0.5


@dataclass(frozen=True)
class Arrival:
    user: str
    at_s: float
    cost_core_s: float
    declared_core_s: float | None = None  # by default the cost

    @property
    def tasks(self) -> int:
        return max(1, math.ceil(self.cost_core_s / LONGEST_TASK_S - 1e-9))


def lags(arrivals: Sequence[Arrival], weights: dict[str, float], slots: int) -> dict[str, float]:
    """How far each user at most was behind its fluid share, core-seconds, on simulated slots."""
    return play(arrivals, weights, slots)[0]


def play(
    arrivals: Sequence[Arrival], weights: dict[str, float], slots: int
) -> tuple[dict[str, float], list[float]]:
    """The lags; and for each task, when it was dispatched, its user's service up to the virtual finish of its
    job (counted from the user's entry), less the service that the user has had already.
    """
    scheduler = FairScheduler(slots, weights=weights)
    coming = sorted(enumerate(arrivals), key=lambda pair: pair[1].at_s)
    coming.reverse()
    waiting: dict[int, int] = {}
    finished = dict.fromkeys(range(len(arrivals)), 0)
    running: list[tuple[float, int]] = []
    done = dict.fromkeys(weights, 0.0)
    times_s: list[float] = []
    real: list[dict[str, float]] = []
    entered: dict[Account, float] = {}  # virtual time at which the account was opened
    left_core_s: list[float] = []
    while coming or running:
        now_s = min([pair[1].at_s for pair in coming[-1:]] + [entry[0] for entry in running[:1]])
        while running and running[0][0] <= now_s:
            _, number = heapq.heappop(running)
            job = arrivals[number]
            finished[number] += 1
            done[job.user] += job.cost_core_s / job.tasks
            had = finished[number] * job.cost_core_s / job.tasks
            if finished[number] == job.tasks:
                scheduler.finish_stage(now_s, number)
                scheduler.finish_job(now_s, str(number), core_s=job.cost_core_s)
            else:
                scheduler.observe(
                    now_s,
                    str(number),
                    finished_core_s=had,
                    finished_tasks=finished[number],
                    known_tasks=job.tasks,
                )
        while coming and coming[-1][1].at_s <= now_s:
            number, job = coming.pop()
            declared = job.cost_core_s if job.declared_core_s is None else job.declared_core_s
            scheduler.submit_job(now_s, str(number), job.user, cost_core_s=declared)
            entered.setdefault(scheduler._clock.users[job.user], scheduler.virtual_time)
            scheduler.add_stage(now_s, str(number), number, tasks=job.tasks)
            waiting[number] = job.tasks
        order = iter([stage for stage in scheduler.order() if stage in waiting])
        while len(running) < slots and waiting:
            number = next(order)
            assert isinstance(number, int)
            account = scheduler._clock.users[arrivals[number].user]
            counted = account.weight * (scheduler.virtual_finish(str(number)) - entered[account])
            left_core_s.append(counted - account.service_core_s)
            while len(running) < slots and waiting.get(number):
                heapq.heappush(
                    running, (now_s + arrivals[number].cost_core_s / arrivals[number].tasks, number)
                )
                waiting[number] -= 1
            if not waiting[number]:
                del waiting[number]
        times_s.append(now_s)
        service = dict(done)
        for end_s, number in running:
            job = arrivals[number]
            service[job.user] += job.cost_core_s / job.tasks - (end_s - now_s)
        real.append(service)
    jobs = [(job.user, job.at_s, job.cost_core_s) for job in sorted(arrivals, key=lambda job: job.at_s)]
    fluid = user_service(jobs, weights, slots, times_s)
    behind = {
        user: max(ideal[user] - had[user] for ideal, had in zip(fluid, real, strict=True)) for user in weights
    }
    return behind, left_core_s


def bound(arrivals: Sequence[Arrival], weights: dict[str, float], slots: int, user: str) -> float:
    in_flight = slots * LONGEST_TASK_S
    longest = max(job.cost_core_s / weights[job.user] for job in arrivals)
    return in_flight + max(weights[user] * longest, (len(weights) - 1) * in_flight)


@st.composite
def workloads(draw: st.DrawFn) -> tuple[list[Arrival], dict[str, float], int]:
    """Floods of alike jobs, bursts of short ones and single ones, of users of different weights."""
    users = [f"user-{number}" for number in range(draw(st.integers(2, 5)))]
    weights = {user: draw(st.sampled_from([0.25, 0.5, 1.0, 1.0, 1.0, 2.0, 4.0])) for user in users}
    arrivals = []
    for _ in range(draw(st.integers(2, 8))):
        user, at_s = draw(st.sampled_from(users)), draw(st.floats(0, 40))
        cost = draw(st.one_of(st.floats(0.1, 2), st.floats(1, 30)))
        arrivals += [Arrival(user, at_s, cost)] * draw(st.sampled_from([1, 1, 3, 10]))
    return arrivals, weights, draw(st.integers(1, 6))


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(workloads())
def test_no_user_falls_behind_by_more_than_the_bound(
    workload: tuple[list[Arrival], dict[str, float], int],
) -> None:
    arrivals, weights, slots = workload
    behind, left_core_s = play(arrivals, weights, slots)
    assert min(left_core_s) >= -1e-6
    for user in weights:
        assert behind[user] <= bound(arrivals, weights, slots, user) + 1e-6


@st.composite
def misdeclared(draw: st.DrawFn) -> tuple[list[Arrival], dict[str, float], int]:
    """The same workloads; each burst is declared as nothing, too low, right or too high."""
    arrivals, weights, slots = draw(workloads())
    factors = st.sampled_from([0.0, 1e-6, 0.1, 0.5, 1.0, 3.0, 100.0])
    wrong = [replace(job, declared_core_s=job.cost_core_s * draw(factors)) for job in arrivals]
    return wrong, weights, slots


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(misdeclared())
def test_whatever_is_declared_reported_service_counts_before_the_next_task(
    workload: tuple[list[Arrival], dict[str, float], int],
) -> None:
    """No task runs whose job's virtual finish is below what its user has had already."""
    arrivals, weights, slots = workload
    _, left_core_s = play(arrivals, weights, slots)
    assert min(left_core_s) >= -1e-6


def backlog(user: str, declared_core_s: float, jobs: int) -> list[Arrival]:
    """Two jobs in three cost 5 core-seconds, the third half of one, and all declare the same."""
    return [Arrival(user, 0, 0.5 if k % 3 == 0 else 5.0, declared_core_s) for k in range(jobs)]


@pytest.mark.parametrize("declared_core_s", [0.0, 1e-3, 0.5, 5.0])
def test_a_backlog_that_is_declared_wrong_takes_no_share_from_others(declared_core_s: float) -> None:
    """Exactly declared jobs stay within the bound, and the tasks in flight when the error was seen."""
    arrivals = backlog("wrong", declared_core_s, 60) + [Arrival("right", 0, 5.0)] * 40
    weights, slots = {"wrong": 1.0, "right": 1.0}, 4
    behind = lags(arrivals, weights, slots)
    assert behind["right"] <= bound(arrivals, weights, slots, "right")


def overtaking_itself() -> tuple[list[Arrival], dict[str, float], int]:
    """A user with many long jobs, half of them served, sends many short ones; another user must wait."""
    arrivals = [Arrival("many", 0, 10)] * 20 + [Arrival("steady", 0, 10)] * 20
    arrivals += [Arrival("many", 80, 1)] * 90
    return arrivals, {"many": 1.0, "steady": 1.0}, 2


def test_overtaking_ones_own_jobs_takes_nothing_from_others() -> None:
    arrivals, weights, slots = overtaking_itself()
    behind = lags(arrivals, weights, slots)
    assert behind["steady"] <= bound(arrivals, weights, slots, "steady")


def test_without_counting_the_service_used_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of costs alone would let the short jobs run as if the long ones had had nothing."""
    arrivals, weights, slots = overtaking_itself()
    monkeypatch.setattr(VirtualClock, "serve", lambda *_: [])
    behind = lags(arrivals, weights, slots)
    assert behind["steady"] > 3 * bound(arrivals, weights, slots, "steady")


def test_a_wide_share_is_reached_and_not_only_bounded() -> None:
    """Weights 3 to 1, both always with work: after each second the shares are as the weights."""
    arrivals = [Arrival("a", 0, 2)] * 60 + [Arrival("b", 0, 2)] * 60
    behind = lags(arrivals, {"a": 3.0, "b": 1.0}, 4)
    assert max(behind.values()) == pytest.approx(0, abs=4 * LONGEST_TASK_S + 2)
