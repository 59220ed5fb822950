"""What a schedule is worth: responses, slowdowns, violations of deadlines, shares, lag of fairness.

``slowdown`` is a job's response time over its response time on an idle cluster. ``DVR`` (deadline violation
ratio) is the mean, over the jobs that end later than in a reference schedule, of the delay over the response
time there; the reference is the ideal fluid schedule. ``lag`` is how far a user's cumulative service has
fallen behind its fluid share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from jobs.fairqueue.simulation.cluster import Schedule
from jobs.fairqueue.simulation.fluid import FluidSchedule
from jobs.fairqueue.simulation.workload import idle_response_s

FloatArray = npt.NDArray[np.float64]


def responses_s(schedules: Sequence[Schedule]) -> FloatArray:
    """Response times of the jobs of all schedules, seconds."""
    return np.concatenate([schedule.response_s for schedule in schedules])


def slowdowns(schedules: Sequence[Schedule]) -> FloatArray:
    """Response times over those on an idle cluster."""
    idle: dict[tuple[tuple[float, ...], ...], float] = {}
    found = []
    for schedule in schedules:
        for job, response_s in zip(schedule.jobs, schedule.response_s, strict=True):
            if job.stages not in idle:
                idle[job.stages] = idle_response_s(job, schedule.slots)
            found.append(response_s / idle[job.stages])
    return np.array(found)


def deadline_violation_ratio(schedules: Sequence[Schedule], references: Sequence[FluidSchedule]) -> float:
    """Mean of the positive (end − reference end) / reference response; 0 where no job ends later."""
    ratios = np.concatenate(
        [
            (np.array(schedule.finish_s) - reference.finish_s)
            / (np.array(reference.finish_s) - reference.submit_s)
            for schedule, reference in zip(schedules, references, strict=True)
        ]
    )
    late = ratios[ratios > 1e-9]
    return float(late.mean()) if len(late) else 0.0


def service_curves(schedule: Schedule) -> Mapping[str, tuple[FloatArray, FloatArray]]:
    """Moments and cumulative service of each user, core-seconds; straight lines between the moments."""
    events: dict[str, list[tuple[float, int]]] = {job.user: [] for job in schedule.jobs}
    for task in schedule.tasks:
        events[schedule.jobs[task.job].user] += [(task.start_s, 1), (task.end_s, -1)]
    return {user: _integrated(changes) for user, changes in events.items()}


def _integrated(changes: Sequence[tuple[float, int]]) -> tuple[FloatArray, FloatArray]:
    ordered = np.array(sorted(changes), dtype=np.float64).reshape(-1, 2)
    running = np.cumsum(ordered[:, 1])
    steps = running[:-1] * np.diff(ordered[:, 0])
    return ordered[:, 0], np.concatenate([[0.0], np.cumsum(steps)])


def service_share(schedule: Schedule, user: str, end_s: float) -> float:
    """Share of all service until ``end_s`` that the user got."""
    curves = service_curves(schedule)
    served = {name: float(np.interp(end_s, *curve)) for name, curve in curves.items()}
    return served[user] / sum(served.values())


def lag_curve(schedule: Schedule, fluid: FluidSchedule, user: str) -> tuple[FloatArray, FloatArray]:
    """Moments, and how far the user's service is behind its fluid service then, core-seconds.

    The fluid schedule must be of the jobs as they were submitted (:meth:`Schedule.as_submitted`).
    Both services are straight lines between the moments returned, so the largest lag is among them.
    """
    moments_s, served = service_curves(schedule)[user]
    times_s = np.union1d(moments_s, fluid.time_s)
    ideal = np.interp(times_s, fluid.time_s, fluid.service_core_s[user])
    return times_s, ideal - np.interp(times_s, moments_s, served)
