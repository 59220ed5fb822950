"""The ideal that schedules are measured against: every user gets its fair share at every instant.

Slots are shared as a fluid. Across users by weighted max–min fairness: a user gets its share by weight, or
all that it can use if that is less, and what it leaves goes to the others (Bertsekas & Gallager, *Data
Networks*, section 6.5.2). A user's share goes to its jobs by max–min fairness with equal weights (processor
sharing). A job can use as many slots as its stage has tasks (with tasks of unequal length: its work over its
longest task, so that no task runs faster than on one slot); its next stage starts when the stage ends.

No policy that cannot interrupt tasks reaches this schedule. It depends on nothing but the workload, so a
schedule's distance from it has no noise of a reference run in it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from jobs.fairqueue.errors import FairQueueParameterError
from jobs.fairqueue.simulation.workload import Job, check_workload

FloatArray = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # work left over from rounding, as a share of the stage's


def max_min_rates(capacity: float, demands: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weighted max–min fair rates: the water rises until a demand is met or nothing is left."""
    rates = [0.0] * len(demands)
    left, weight = capacity, math.fsum(weights)
    for i in sorted(range(len(demands)), key=lambda i: demands[i] / weights[i]):
        rates[i] = min(demands[i], left * weights[i] / weight)
        left = max(left - rates[i], 0.0)
        weight -= weights[i]
    return rates


@dataclass(frozen=True, slots=True)
class FluidSchedule:
    """The ideal schedule of a workload.

    Parameters
    ----------
    submit_s, finish_s
        When each job was submitted and when it ended, in the order of the workload.
    time_s
        Moments between which all rates are constant, ``float64 [t]``, ascending.
    service_core_s
        Cumulative service of each user at these moments, each ``float64 [t]``.
    """

    submit_s: tuple[float, ...]
    finish_s: tuple[float, ...]
    time_s: FloatArray
    service_core_s: Mapping[str, FloatArray]


def fluid_schedule(
    jobs: Sequence[Job], *, slots: int, weights: Mapping[str, float] | None = None, capped: bool = True
) -> FluidSchedule:
    """Ideal schedule of a workload.

    Parameters
    ----------
    jobs
        The workload.
    slots
        Number of slots.
    weights
        Weights of users, 1 where not given.
    capped
        False lets a job use all slots whatever the number of its tasks (generalised processor sharing).

    Raises
    ------
    FairQueueParameterError
        ``slots`` is not positive, or the workload breaks a rule.
    """
    if slots < 1:
        raise FairQueueParameterError(f"'slots' must be positive (got {slots})")
    check_workload(jobs)
    return _Fluid(tuple(jobs), slots, dict(weights or {}), capped).run()


class _Fluid:
    def __init__(self, jobs: tuple[Job, ...], slots: int, weights: dict[str, float], capped: bool) -> None:
        self._jobs, self._slots, self._weights, self._capped = jobs, slots, weights, capped
        self._submit_s = [0.0] * len(jobs)
        self._finish_s = [0.0] * len(jobs)
        self._stage = [0] * len(jobs)
        self._left: dict[int, float] = {}  # unfinished work of the current stage of each active job
        self._rates: dict[int, float] = {}
        self._served = dict.fromkeys((job.user for job in jobs), 0.0)
        self._times: list[float] = [0.0]
        self._history: list[list[float]] = [list(self._served.values())]

    def run(self) -> FluidSchedule:
        arrivals = sorted((job.submit_s, i) for i, job in enumerate(self._jobs) if job.after is None)[::-1]
        followers: dict[str, list[int]] = defaultdict(list)
        for i, job in enumerate(self._jobs):
            if job.after is not None:
                followers[job.after].append(i)
        now_s = 0.0
        while arrivals or self._left:
            self._share()
            ends_s = min((now_s + self._left[i] / rate for i, rate in self._rates.items()), default=math.inf)
            next_s = min(ends_s, arrivals[-1][0] if arrivals else math.inf)
            self._serve(next_s - now_s)
            now_s = next_s
            self._record(now_s)
            for i in self._end_stages(now_s, ends_s <= now_s):
                waiting = followers.pop(self._jobs[i].name, ())
                arrivals += [(max(now_s, self._jobs[k].submit_s), k) for k in waiting]
                arrivals.sort(reverse=True)
            while arrivals and arrivals[-1][0] <= now_s:
                self._submit(now_s, arrivals.pop()[1])
        service = np.array(self._history)
        return FluidSchedule(
            tuple(self._submit_s),
            tuple(self._finish_s),
            np.array(self._times),
            {user: service[:, k] for k, user in enumerate(self._served)},
        )

    def _submit(self, now_s: float, i: int) -> None:
        self._submit_s[i] = now_s
        self._left[i] = math.fsum(self._jobs[i].stages[0])

    def _share(self) -> None:
        """Give every active job its rate, in slots."""
        of_user: dict[str, list[int]] = defaultdict(list)
        for i in self._left:
            of_user[self._jobs[i].user].append(i)
        caps = {i: self._cap(i) for i in self._left}
        demands = [math.fsum(caps[i] for i in members) for members in of_user.values()]
        shares = max_min_rates(self._slots, demands, [self._weights.get(user, 1.0) for user in of_user])
        self._rates = {}
        for share, members in zip(shares, of_user.values(), strict=True):
            rates = max_min_rates(share, [caps[i] for i in members], [1.0] * len(members))
            self._rates.update(zip(members, rates, strict=True))

    def _cap(self, i: int) -> float:
        stage = self._jobs[i].stages[self._stage[i]]
        return math.fsum(stage) / max(stage) if self._capped else float(self._slots)

    def _serve(self, seconds: float) -> None:
        for i, rate in self._rates.items():
            self._left[i] -= rate * seconds
            self._served[self._jobs[i].user] += rate * seconds

    def _record(self, now_s: float) -> None:
        self._times.append(now_s)
        self._history.append(list(self._served.values()))

    def _end_stages(self, now_s: float, any_ends: bool) -> list[int]:
        """Jobs that end now; those whose stage ends go on to the next."""
        ended: list[int] = []
        if not any_ends:
            return ended
        for i in list(self._left):
            stages = self._jobs[i].stages
            if self._left[i] > _ROUNDING * math.fsum(stages[self._stage[i]]):
                continue
            self._stage[i] += 1
            if self._stage[i] < len(stages):
                self._left[i] = math.fsum(stages[self._stage[i]])
            else:
                del self._left[i]
                self._finish_s[i] = now_s
                ended.append(i)
        return ended
