"""Workloads of the evaluation: four scenarios of job classes, in the sizes of arXiv 2510.15485.

Poisson arrivals are drawn from the seed and the user's name, so a user's arrivals stay the same whatever else
a workload holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from jobs.fairqueue.simulation.workload import Job, partitioned

SLOTS = 32

#: Core-seconds of the job classes.
LOOP20, LOOP100, LOOP1000 = "Loop20", "Loop100", "Loop1000"
CORE_S: Mapping[str, float] = {LOOP20: 1.5, LOOP100: 26.9, LOOP1000: 131.0}

Workload = tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload to evaluate policies on.

    Parameters
    ----------
    name, title
        Key and description.
    make
        The workload of a seed.
    seeds
        How many seeds its means are taken over; 1 where nothing is random.
    light_users
        Users whose jobs are few or short, and who must not suffer from the others.
    """

    name: str
    title: str
    make: Callable[[int], Workload]
    seeds: int = 1
    light_users: frozenset[str] = frozenset()


def _job(user: str, number: int, job_class: str, submit_s: float = 0.0, after: str | None = None) -> Job:
    stages = (partitioned(CORE_S[job_class]),)
    return Job(f"{user}/{number}", user, stages, submit_s=submit_s, after=after, job_class=job_class)


def _one_after_another(user: str, jobs: int, job_class: str) -> Iterator[Job]:
    """Each job is submitted when the one before it ends."""
    for number in range(jobs):
        yield _job(user, number, job_class, after=f"{user}/{number - 1}" if number else None)


def _poisson(user: str, jobs: int, job_class: str, per_minute: float, seed: int) -> Iterator[Job]:
    draws = random.Random(f"{user} {seed}")
    now_s = 0.0
    for number in range(jobs):
        now_s += draws.expovariate(per_minute / 60)
        yield _job(user, number, job_class, submit_s=now_s)


def long_and_short(seed: int) -> Workload:
    """Two users with long jobs one after another, two with short ones at random."""
    return (
        *_one_after_another("long-1", 4, LOOP1000),
        *_one_after_another("long-2", 4, LOOP1000),
        *_poisson("short-1", 6, LOOP100, 15, seed),
        *_poisson("short-2", 6, LOOP100, 15, seed),
    )


def flood(seed: int) -> Workload:
    """Two users who submit 20 jobs at once, four times; two who submit the same jobs now and then."""
    bursts = [
        _job(user, 20 * burst + number, LOOP100, submit_s=30.0 * burst)
        for user in ("frequent-1", "frequent-2")
        for burst in range(4)
        for number in range(20)
    ]
    return (
        *bursts,
        *_poisson("infrequent-1", 12, LOOP100, 8, seed),
        *_poisson("infrequent-2", 12, LOOP100, 8, seed),
    )


def equal_long(seed: int) -> Workload:
    """Four users, each with long jobs one after another."""
    return tuple(
        job
        for user in ("user-1", "user-2", "user-3", "user-4")
        for job in _one_after_another(user, 4, LOOP1000)
    )


def equal_short(seed: int) -> Workload:
    """Four users, each with thirty short jobs at once."""
    return tuple(
        _job(user, number, LOOP20)
        for user in ("user-1", "user-2", "user-3", "user-4")
        for number in range(30)
    )


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("s1", "Long and short jobs", long_and_short, 20, frozenset({"short-1", "short-2"})),
        Scenario("s2", "The flood", flood, 10, frozenset({"infrequent-1", "infrequent-2"})),
        Scenario("s3", "Equal users, long jobs", equal_long),
        Scenario("s4", "Equal users, many short jobs at once", equal_short),
    )
}
