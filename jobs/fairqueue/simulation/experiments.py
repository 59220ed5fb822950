"""Workloads under every policy, and experiments with wrong estimates, a dishonest user and fairness."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from jobs.fairqueue.simulation import metrics
from jobs.fairqueue.simulation.cluster import Schedule, simulate
from jobs.fairqueue.simulation.fluid import fluid_schedule
from jobs.fairqueue.simulation.policies import POLICIES, POLL_INTERVAL_S
from jobs.fairqueue.simulation.scenarios import CORE_S, LOOP100, LOOP1000, SLOTS, Workload
from jobs.fairqueue.simulation.workload import Job, partitioned

FloatArray = npt.NDArray[np.float64]

NOISE = 4.0  # declared costs are wrong by up to this factor, up or down
SUBJECT = "user-1"  # whose costs are wrong where those of one user are
SMALL_CORE_S, LARGE_CORE_S, SMALL = 0.05, 10.0, 0.6  # jobs of two sizes, and how many of them are small


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of the workloads of all seeds.

    Parameters
    ----------
    policy
        Its name.
    responses_s, slowdowns, core_s
        Response time of each job, the same over its response time on an idle cluster, and its cost,
        ``float64 [n]``.
    light
        Which jobs are those of light users, ``bool [n]``.
    deadline_violations
        DVR against the ideal fluid schedule.
    makespan_s
        End of the last job, the mean over the seeds.
    example
        Schedule of the first seed.
    """

    policy: str
    responses_s: FloatArray
    slowdowns: FloatArray
    core_s: FloatArray
    light: npt.NDArray[np.bool_]
    deadline_violations: float
    makespan_s: float
    example: Schedule

    @property
    def mean_s(self) -> float:
        """Mean response time."""
        return float(self.responses_s.mean())

    @property
    def light_mean_s(self) -> float:
        """Mean response time of the light users' jobs."""
        return float(self.responses_s[self.light].mean())

    @property
    def large_mean_s(self) -> float:
        """Mean response time of the largest twentieth of the jobs."""
        return float(self.responses_s[self.core_s >= np.quantile(self.core_s, 0.95)].mean())

    @property
    def stretch(self) -> float:
        """Mean slowdown."""
        return float(self.slowdowns.mean())


def evaluate(
    workloads: Sequence[Workload],
    policies: Iterable[str] = tuple(POLICIES),
    light_users: frozenset[str] = frozenset(),
) -> dict[str, Outcome]:
    """Run workloads, one per seed, under policies."""
    ideal = [fluid_schedule(workload, slots=SLOTS) for workload in workloads]
    jobs = [job for workload in workloads for job in workload]
    core_s = np.array([job.core_s for job in jobs])
    light = np.array([job.user in light_users for job in jobs])
    outcomes = {}
    for policy in policies:
        schedules = [run(workload, policy) for workload in workloads]
        outcomes[policy] = Outcome(
            policy,
            metrics.responses_s(schedules),
            metrics.slowdowns(schedules),
            core_s,
            light,
            metrics.deadline_violation_ratio(schedules, ideal),
            float(np.mean([schedule.makespan_s for schedule in schedules])),
            schedules[0],
        )
    return outcomes


def run(jobs: Workload, policy: str, weights: Mapping[str, float] | None = None) -> Schedule:
    """Schedule of one workload under one policy."""
    return simulate(jobs, POLICIES[policy](SLOTS, weights), slots=SLOTS)


def declared(jobs: Iterable[Job]) -> Workload:
    """The jobs with their true costs declared."""
    return tuple(job.declaring(job.core_s) for job in jobs)


def misdeclared(jobs: Iterable[Job], seed: int) -> Workload:
    """The jobs with declared costs that are wrong by ×/÷ :data:`NOISE`, log-uniform."""
    draws = random.Random(f"noise {seed}")
    return tuple(job.declaring(job.core_s * NOISE ** draws.uniform(-1, 1)) for job in jobs)


def backlogs(seed: int, jobs_per_user: int = 100) -> Workload:
    """Four users with jobs of all sizes, all submitted at the start."""
    draws = random.Random(f"backlogs {seed}")
    low, high = 1.0, CORE_S[LOOP100] * 2
    return tuple(
        Job(f"user-{user}/{number}", f"user-{user}", (partitioned(low * (high / low) ** draws.random()),))
        for user in range(1, 5)
        for number in range(jobs_per_user)
    )


def two_sizes(seed: int) -> Workload:
    """The same, but the jobs of :data:`SUBJECT` are either small or large."""
    draws = random.Random(f"two sizes {seed}")
    own = (
        Job(
            f"{SUBJECT}/{number}",
            SUBJECT,
            (partitioned(SMALL_CORE_S if draws.random() < SMALL else LARGE_CORE_S),),
        )
        for number in range(300)
    )
    return (*own, *(job for job in backlogs(seed) if job.user != SUBJECT))


@dataclass(frozen=True, slots=True)
class Error:
    """A way in which the costs of one user are wrong.

    Parameters
    ----------
    what
        What the user does.
    workload
        The jobs of a seed.
    wrong
        A job of the user, and its number among them, with the cost as it is declared.
    """

    what: str
    workload: Callable[[int], Workload]
    wrong: Callable[[Job, int], Job]

    def apply(self, jobs: Iterable[Job], user: str = SUBJECT) -> Workload:
        """The jobs with the costs of one user wrong, and all others declared as they are."""
        jobs = tuple(jobs)
        own = {job.name: number for number, job in enumerate(job for job in jobs if job.user == user)}
        return tuple(
            self.wrong(job, own[job.name]) if job.name in own else job.declaring(job.core_s) for job in jobs
        )


TENTH = Error("declares a tenth of each cost", backlogs, lambda job, number: job.declaring(job.core_s / 10))

#: Ways to be wrong that keep jobs unmeasured or seemingly short, by design or honestly.
ERRORS: tuple[Error, ...] = (
    TENTH,
    Error(
        "declares a tenth of two costs in three",
        backlogs,
        lambda job, number: job.declaring(job.core_s / (10 if number % 3 else 1)),
    ),
    Error("declares 0", backlogs, lambda job, number: job.declaring(0.0)),
    Error(
        "declares its large jobs as small ones",
        two_sizes,
        lambda job, number: job.declaring(SMALL_CORE_S),
    ),
    Error(
        "has an honest class of small and large jobs",
        two_sizes,
        lambda job, number: replace(job, job_class="both sizes"),
    ),
)


@dataclass(frozen=True, slots=True)
class Gain:
    """By what part of it a user's share of the service grows, over so many seconds from the start."""

    gain: float
    horizon_s: float


def gain_of_error(error: Error, jobs: Workload, user: str = SUBJECT) -> Gain:
    """What one user gains when its costs alone are wrong, as long as all users have jobs to come."""
    right, wrong = run(declared(jobs), "uwfq"), run(error.apply(jobs, user), "uwfq")
    ends: dict[tuple[int, str], float] = {}
    for number, schedule in enumerate((right, wrong)):
        for job, finish_s in zip(schedule.jobs, schedule.finish_s, strict=True):
            key = number, job.user
            ends[key] = max(ends.get(key, 0.0), finish_s)
    end_s = min(ends.values())
    shares = [metrics.service_share(schedule, user, end_s) for schedule in (right, wrong)]
    return Gain(shares[1] / shares[0] - 1, end_s)


WEIGHTS: Mapping[str, float] = {"weight-1": 1.0, "weight-2": 2.0, "weight-4": 4.0}


def weighted(seed: int, jobs_per_user: int = 30, stages: int = 1) -> Workload:
    """Users of different weights with jobs of all sizes at random, so that queues come and go."""
    draws = random.Random(f"weighted {seed}")
    low, high = 1.0, CORE_S[LOOP1000]
    jobs = []
    for user in WEIGHTS:
        now_s = 0.0
        for number in range(jobs_per_user):
            now_s += draws.expovariate(0.3)
            core_s = low * (high / low) ** draws.random()
            tasks = (partitioned(core_s / stages),) * stages
            jobs.append(Job(f"{user}/{number}", user, tasks, submit_s=now_s, declared_core_s=core_s))
    return tuple(jobs)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far users fall behind their fluid share in one workload.

    Parameters
    ----------
    curves
        By user: moments, s, and the lag then, core-seconds; negative while the user is ahead.
    bounds_core_s
        By user: what its lag never exceeds where jobs are fully parallel (:func:`lag_bound_core_s`).
    """

    curves: Mapping[str, tuple[FloatArray, FloatArray]]
    bounds_core_s: Mapping[str, float]

    @property
    def largest(self) -> float:
        """The largest lag of all users at any time, over its bound."""
        return max(float(lag.max()) / self.bounds_core_s[user] for user, (_, lag) in self.curves.items())


def lag_bound_core_s(schedule: Schedule, weights: Mapping[str, float], user: str) -> float:
    """``R A + max(w_u max_v(L_v / w_v), K R (A + P))``, core-seconds.

    ``R`` slots, tasks of at most ``A`` seconds, jobs of cost ``L``, service reported every ``P`` seconds,
    ``K`` other users that may have overtaken themselves; exact costs, and jobs whose tasks may all run at
    once.
    """
    longest_task_s = max(run_time_s for job in schedule.jobs for stage in job.stages for run_time_s in stage)
    longest = max(job.core_s / weights[job.user] for job in schedule.jobs)
    overtakers = len(_overtakers(schedule) - {user})
    unreported = overtakers * schedule.slots * (longest_task_s + POLL_INTERVAL_S)
    return schedule.slots * longest_task_s + max(weights[user] * longest, unreported)


def _overtakers(schedule: Schedule) -> set[str]:
    """Users that submitted a job while a costlier one of theirs was running: only such can go before it."""
    start_s: dict[int, float] = {}
    for task in schedule.tasks:
        start_s.setdefault(task.job, task.start_s)
    own: dict[str, list[int]] = {}
    for number, job in enumerate(schedule.jobs):
        own.setdefault(job.user, []).append(number)
    jobs, submit_s, finish_s = schedule.jobs, schedule.submit_s, schedule.finish_s
    return {
        user
        for user, numbers in own.items()
        if any(
            jobs[new].core_s < jobs[old].core_s and start_s[old] < submit_s[new] < finish_s[old]
            for new in numbers
            for old in numbers
        )
    }


def fairness_lag(jobs: Workload, policy: str, weights: Mapping[str, float]) -> Lag:
    """Lag of every user behind generalised processor sharing; ``weights`` names all users."""
    schedule = run(jobs, policy, weights)
    fluid = fluid_schedule(schedule.as_submitted(), slots=SLOTS, weights=weights, capped=False)
    return Lag(
        {user: metrics.lag_curve(schedule, fluid, user) for user in weights},
        {user: lag_bound_core_s(schedule, weights, user) for user in weights},
    )
