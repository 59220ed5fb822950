"""Fluid fair sharing on two levels, from its definition, in exact fractions.

Users with work share the slots by weight; a user's jobs share what it has equally. The jobs' remaining work
is carried from one event to the next; there is no virtual time in it, except as a sum at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class FluidJob:
    """A job as it arrives."""

    user: str
    arrival_s: Fraction
    cost_core_s: Fraction


@dataclass
class FluidResult:
    """What became of the jobs until the end."""

    end_s: dict[int, Fraction]  # under equal sharing inside the user; jobs with work left are absent
    left_core_s: dict[int, Fraction]
    service_core_s: dict[str, Fraction]
    virtual_time: Fraction  # service of a user of weight 1 that always had work
    virtual_start: dict[str, Fraction]  # the virtual time at which the user last began to have work
    departed_s: dict[str, Fraction]  # when it last ran out of work
    busy_since: dict[str, int]  # its first job since then


def fluid(
    jobs: Sequence[FluidJob], weights: dict[str, Fraction], slots: int, until_s: Fraction
) -> FluidResult:
    """Share the slots until a time among the jobs that arrive up to then, in order of arrival."""
    result = FluidResult({}, {}, dict.fromkeys(weights, Fraction(0)), Fraction(0), {}, {}, {})
    now_s = Fraction(0)
    arrivals = [(job.arrival_s, number) for number, job in enumerate(jobs) if job.arrival_s <= until_s]
    while True:
        busy = {jobs[number].user for number in result.left_core_s}
        total = sum(weights[user] for user in busy)
        rates = {}
        for number in result.left_core_s:
            user = jobs[number].user
            mine = sum(jobs[other].user == user for other in result.left_core_s)
            rates[number] = slots * weights[user] / total / mine
        stops = [now_s + left / rates[number] for number, left in result.left_core_s.items()]
        stops.append(arrivals[0][0] if arrivals else until_s)
        next_s = min(*stops, until_s) if len(stops) > 1 else min(stops[0], until_s)
        for number, rate in rates.items():
            result.left_core_s[number] -= rate * (next_s - now_s)
            result.service_core_s[jobs[number].user] += rate * (next_s - now_s)
        if busy:
            result.virtual_time += slots / total * (next_s - now_s)
        now_s = next_s
        for number in [number for number, left in result.left_core_s.items() if left == 0]:
            del result.left_core_s[number]
            result.end_s[number] = now_s
        for user in busy - {jobs[number].user for number in result.left_core_s}:
            result.departed_s[user] = now_s
        if arrivals and arrivals[0][0] <= now_s:
            number = arrivals.pop(0)[1]
            user = jobs[number].user
            if all(jobs[other].user != user for other in result.left_core_s):
                result.virtual_start[user] = result.virtual_time
                result.busy_since[user] = number
            result.left_core_s[number] = jobs[number].cost_core_s
        elif now_s >= until_s:
            return result


def virtual_finishes(
    jobs: Sequence[FluidJob], weights: dict[str, Fraction], result: FluidResult
) -> dict[int, Fraction]:
    """Virtual finish of the jobs with work left: their user's jobs served one by one, first done first."""
    finishes = {}
    for number in result.left_core_s:
        user = jobs[number].user
        busy_period = [
            other
            for other in [*result.end_s, *result.left_core_s]
            if jobs[other].user == user and other >= result.busy_since[user]
        ]
        last = (result.left_core_s[number], number)
        before = [
            jobs[other].cost_core_s
            for other in busy_period
            if other in result.end_s or (result.left_core_s[other], other) <= last
        ]
        finishes[number] = result.virtual_start[user] + sum(before, Fraction(0)) / weights[user]
    return finishes


def user_service(
    jobs: Sequence[tuple[str, float, float]], weights: dict[str, float], slots: int, times_s: Sequence[float]
) -> list[dict[str, float]]:
    """Fluid service of each user up to each of some times, in floats; jobs are (user, arrival, cost), sorted.

    How a user divides its share among its jobs makes no difference to it.
    """
    left = dict.fromkeys(weights, 0.0)
    service = dict.fromkeys(weights, 0.0)
    arrivals = list(jobs)
    now_s, results = 0.0, []
    for until_s in times_s:
        while True:
            while arrivals and arrivals[0][1] <= now_s:
                user, _, cost = arrivals.pop(0)
                left[user] += cost
            busy = [user for user in left if left[user] > 0]
            total = sum(weights[user] for user in busy)
            rates = {user: slots * weights[user] / total for user in busy}
            next_s = min([until_s, *(now_s + left[user] / rates[user] for user in busy)])
            next_s = min(next_s, arrivals[0][1]) if arrivals else next_s
            for user, rate in rates.items():
                served = min(left[user], rate * (next_s - now_s))
                left[user] -= served
                left[user] = left[user] if left[user] > 1e-9 else 0.0
                service[user] += served
            now_s = next_s
            if now_s >= until_s:
                break
        results.append(dict(service))
    return results
