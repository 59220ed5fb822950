"""The virtual clock: who would have been served by when, if the slots were a fluid.

Two levels of fair sharing over ``R`` slots [1]_. Across users, each user with work left holds a share of the
slots in proportion to its weight (generalised processor sharing [2]_ [3]_). Inside a user's share its jobs
count as running side by side, so that short jobs come before long ones, and are then *served* one after
another in the order in which they would finish. ``L`` is a job's cost in core-seconds, ``w`` a user's
weight, ``W`` the sum of the weights of the users in the virtual system:

- ``dV/dt = R / W``: the virtual time ``V`` is what a user of weight 1 would have been served. It stands
  still while nobody is in the system. Everything below depends on the time through ``V`` alone.
- A user enters with ``S = max(V, S)`` and owns a clock ``v`` with ``dv/dV = w / n`` over its ``n`` virtually
  unfinished jobs. A job that enters at ``v`` would finish at ``d = v + L`` under equal sharing; when ``v``
  passes ``d`` the job is *virtually done* and ``S`` grows by ``L / w``.
- The user's jobs in order of ``d`` form its chain: ``C_1 = S + L_1 / w``, ``C_k = C_{k-1} + L_k / w``. The
  last one is ``E``, the user's account; the user leaves when ``V`` reaches ``E``.
- Jobs are dispatched by their virtual finish ``D``, the smallest first: ``D_k = C_k + (U_{k+1} + ...) / w``
  with ``U_i`` the part of ``L_i`` that job ``i`` has really been served already. That holds on for a job
  that is virtually done, by the ``C`` and ``U`` of all jobs that come after it, but for time that its user
  was away: that does not move it.

A short job that comes late may get a ``D`` in the past: it runs at once and the user's *own* longer jobs move
back, for ``E`` grows by exactly ``L / w`` with each job, whatever its place in the chain. Jobs that have
begun cannot move back, though: without the terms ``U`` a user whose long jobs have had its whole share could
have it once more for its short ones (of any number, at once). With them it is ahead of its share by no more
than what its running tasks have yet to report, and before any service ``D`` is ``C``.

So, whatever the costs were thought to be, the service reported for a user since it first entered is at most
``w`` times what the ``D`` of any of its waiting jobs lies beyond that. Otherwise jobs that look short, and
are virtually done before any of them has run, would be dispatched however much the first of them turn out to
need.

Corrected costs
    When a cost changes by ``x`` (first tasks measured, or the job is over), ``E`` moves by ``x / w`` and the
    chain with it, as if the cost had been known from the start [5]_: a virtually done job goes back into the
    chain, unless equal sharing would have finished it by now even so. If that sets ``E`` beyond ``V`` for a
    user that had left, the user is in the system again: it pays its debt out of its share, and nothing
    forgets the debt before ``V`` has passed it. A refund reaches back to where the user last entered and no
    further: fair queueing gives no credit for time away.

Grace period
    A job that goes on after its user left (it used more than was thought) continues from the user's old
    ``S``, since the user had work all along, if it left at most ``grace_s`` ago. Later the work counts as
    new, at ``max(V, S)``.

Bound
    Let costs and weights be known and fixed and all jobs fully parallel, served by dispatching tasks of at
    most ``A`` seconds without preemption to whichever slot is free, and reported when they end. Then at any
    time the service that user ``u`` has really had is behind its fluid share by at most ``R A + max(w_u B, K
    R A)``. ``B = max L / w`` over all jobs is the longest job in virtual time: with equal weights ``w_u B``
    is the largest job, once. ``K`` counts the other users that submitted a job which goes before one of their
    own running ones; it matters only where jobs are smaller than ``K R A``. If service is reported every
    ``P`` seconds instead, that term is ``K R (A + P)``. A user whose costs are not known gains at most what
    it can be dispatched before service is reported, ``R (A + P)``, once in a backlog; that is shown in the
    simulator, not proved here.

    *Proof.* Fix ``t``, let ``y = V(t)``, and let ``s`` be the last time up to ``t`` at which a slot was idle
    or a task with ``D > y`` was dispatched. At ``s`` no task with ``D <= y`` waits. A waiting job's ``D``
    never falls, so from ``s`` to ``t`` all slots are busy, and what is dispatched belongs to jobs that
    arrived after ``s`` and have ``D <= y``. Let ``G`` be fluid service from ``s`` to ``t``,
    ``x = y - V(s)``, and ``P_v`` what user ``v`` was dispatched by ``s`` since it entered at ``S_v``.

    (a) When a task of job ``k`` with ``D_k <= y`` is dispatched, everything dispatched for ``v`` is at most
    the costs up to ``k``, the service of longer jobs, and what these have in flight and have not reported,
    ``I_v <= R (A + P)``; so it is at most ``w_v (y - S_v) + I_v``. (b) If ``v`` has tasks waiting at ``s``,
    let ``k`` be the first job in its chain with ``D_k > y``: all jobs before it are dispatched, so ``P_v >=
    w_v (D_k - S_v) - L_k > w_v (y - S_v) - L_k``. If nothing of ``v`` waits, ``P_v >= w_v (V(s) - S_v)``, for
    the fluid can serve no more than has arrived. (c) So between ``s`` and ``t`` user ``v`` is dispatched at
    most ``G_v + I_v + max(0, w_v (B - x))``.

    If ``u`` itself has tasks waiting at ``s``, then by (b) its lag at ``t`` is at most ``w_u x`` more than
    ``L_k - w_u x`` plus its tasks in flight at ``s``: at most ``w_u B + R A``. Otherwise its lag at ``s`` is
    at most what it has in flight. If ``x <= B``, the fluid adds at most ``w_u B`` to that. If ``x > B``, then
    by (c) the others were dispatched at most ``G_v + I_v`` each, all slots were busy, and what was in flight
    at ``s``, of anyone, is at most ``R A``: the lag is at most ``R A`` and the sum of the ``I_v``, which is 0
    for users that did not overtake themselves. ∎

    For single jobs in order of arrival this is the bound of packet fair queueing, the largest packet [3]_;
    the weights appear in ``B`` because short jobs with a finish in the past let a user that *is* behind
    catch up at once, by up to its longest job [4]_.

Rounding
    ``V`` is computed from the last change of ``W`` rather than summed up over events, a departure sets it to
    ``E`` itself, and a virtually done job leaves ``S`` at its own ``C``: nothing accumulates over days.

References
----------
.. [1] "Balancing Fairness and Performance in Multi-User Spark Workloads with Dynamic Scheduling",
   arXiv 2510.15485.
.. [2] A. Demers, S. Keshav, S. Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", 1989.
.. [3] A. Parekh, R. Gallager, "A Generalized Processor Sharing Approach to Flow Control", 1993.
.. [4] J. Bennett, H. Zhang, "WF2Q: Worst-case Fair Weighted Fair Queueing", 1996, on how far ahead of the
   fluid a queue by virtual finish may run.
.. [5] Kubernetes, "API Priority and Fairness", the section on requests whose duration is not known.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping

from jobs.fairqueue.account import Account, VirtualJob
from jobs.fairqueue.errors import (
    FairQueueParameterError,
    UnknownJobError,
    require_cost,
    require_invariant,
    require_non_negative,
    require_positive,
)

WEIGHT_RANGE = (1e-6, 1e6)  # a wider one would use up the digits of the virtual time within days


class VirtualClock:
    """Virtual time of all users and virtual finish of all jobs.

    Parameters
    ----------
    slots
        Number of tasks that run at the same time.
    weights
        Weight per user; users that are not named have ``default_weight``.
    default_weight
        Weight of all other users.
    grace_s
        For how long a user that has left the virtual system can go on with a job where it stopped, seconds.

    Raises
    ------
    FairQueueParameterError
        A weight, the number of slots or the grace period breaks its rule.
    """

    def __init__(
        self,
        slots: int,
        *,
        weights: Mapping[str, float] | None = None,
        default_weight: float = 1.0,
        grace_s: float = 2.0,
    ) -> None:
        self._slots = _slots(slots)
        self._default_weight = _weight("'default_weight'", default_weight)
        self._weights = {user: _weight(_of(user), weight) for user, weight in (weights or {}).items()}
        self._grace_s = require_non_negative("'grace_s'", grace_s)
        self._users: dict[str, Account] = {}
        self._jobs: dict[str, tuple[Account, VirtualJob]] = {}
        self._departures: list[tuple[float, str]] = []  # (E, user) of everyone in the system, sorted
        self._total_weight = 0.0  # W
        self._now_s = -math.inf
        self._virtual_time = 0.0
        self._anchor = (-math.inf, 0.0)  # (seconds, V) at the last change of R / W
        self._numbers = 0
        self._newly_done: list[str] = []

    @property
    def now_s(self) -> float:
        """The latest time seen."""
        return self._now_s

    @property
    def slots(self) -> int:
        """Number of tasks that run at the same time."""
        return self._slots

    @property
    def virtual_time(self) -> float:
        """``V`` at the latest time seen."""
        return self._virtual_time

    @property
    def users(self) -> Mapping[str, Account]:
        """Accounts of the users that have jobs or debt."""
        return self._users

    # ------------------------------------------------------------------ time

    def advance(self, now_s: float) -> None:
        """Move the virtual time from one departure to the next, and then to ``now_s``.

        A time before the latest one seen counts as that one.
        """
        if not math.isfinite(now_s):
            raise FairQueueParameterError(f"'now_s' must be finite (got {now_s!r})")
        if now_s <= self._now_s:
            return
        self._now_s = now_s
        if self._anchor[0] == -math.inf:
            self._anchor = (now_s, self._virtual_time)
        while self._departures and self._slots:
            finish, name = self._departures[0]
            anchor_s, anchor = self._anchor
            rate = self._slots / self._total_weight
            reached = anchor + (now_s - anchor_s) * rate
            if reached < finish:
                self._virtual_time = max(self._virtual_time, reached)
                return
            left_s = min(now_s, anchor_s + (finish - anchor) / rate)
            self._virtual_time = max(self._virtual_time, finish)
            del self._departures[0]
            self._leave(self._users[name], left_s)
        self._anchor = (now_s, self._virtual_time)

    def _rate_changed(self, at_s: float) -> None:
        """``R / W`` is another one from ``at_s`` on."""
        # Summed anew: adding and subtracting would leave a rest that grows over days.
        self._total_weight = math.fsum(self._users[name].weight for _, name in self._departures)
        self._anchor = (at_s, self._virtual_time)

    def _leave(self, account: Account, left_s: float) -> None:
        """The user's virtual work is served."""
        if account.backlogged:
            account.backlogged = False
            self._rate_changed(left_s)
        self._newly_done += [job.job for job in account.leave(self._virtual_time, left_s)]
        self._forget_if_idle(account)

    def _catch_up(self, account: Account) -> None:
        self._newly_done += [job.job for job in account.catch_up(self._virtual_time)]

    # ------------------------------------------------------------------ jobs

    def add(self, job: str, user: str, cost_core_s: float) -> list[str]:
        """Enter a new job; gives the jobs whose virtual finish changed, the new one included."""
        if job in self._jobs:
            raise FairQueueParameterError(f"'job' {job!r} is in the virtual clock already")
        cost = require_cost(f"'cost_core_s' of job {job!r}", cost_core_s)
        account = self._account(user)
        self._catch_up(account)
        if not account.backlogged:
            account.enter_anew(self._virtual_time)
        entry = VirtualJob(job, self._numbers, cost, account.own_time + cost, account.period)
        self._numbers += 1
        self._jobs[job] = account, entry
        account.known_jobs += 1
        return self._link(account, account.insert(entry))

    def correct(self, changes_core_s: Mapping[str, float]) -> list[str]:
        """Charge users more, or less, core-seconds for jobs; gives the jobs whose virtual finish changed."""
        firsts: dict[str, int] = {}
        charged: set[str] = set()
        for job, change in changes_core_s.items():
            account, entry = self._entry(job)
            if account.user not in firsts:
                self._catch_up(account)
            if change > 0 and account.user not in charged:
                charged.add(account.user)
                if not account.backlogged and self._now_s - account.left_s > self._grace_s:
                    account.enter_anew(self._virtual_time)
            first = account.charge(entry, change)
            firsts[account.user] = min(first, firsts.get(account.user, first))
            if entry.done:
                self._newly_done.append(job)
        moved = list(changes_core_s)
        for user, first in firsts.items():
            moved += self._link(self._users[user], first)
        return moved

    def forget(self, job: str) -> list[str]:
        """Drop a virtually done job; gives the jobs whose virtual finish changed."""
        account, entry = self._entry(job)
        if not entry.done:
            raise FairQueueParameterError(f"'job' {job!r} must be virtually done to be forgotten")
        del self._jobs[job]
        account.known_jobs -= 1
        moved = account.forget(entry)
        self._forget_if_idle(account)
        return moved

    def virtual_finish(self, job: str) -> float:
        """``D`` of a job."""
        return self._entry(job)[1].virtual_finish

    def is_done(self, job: str) -> bool:
        """Whether the job was virtually done when its user's account was last looked at."""
        return self._entry(job)[1].done

    def number(self, job: str) -> int:
        """Place of a job in the order of submission, which breaks ties."""
        return self._entry(job)[1].number

    def serve(self, job: str, served_core_s: float) -> list[str]:
        """A job has really had so much service in total; gives the jobs whose virtual finish changed."""
        account, entry = self._entry(job)
        more = served_core_s - entry.served_core_s
        if more <= 0:
            return []
        account.service_core_s += more
        used = entry.used_core_s
        entry.served_core_s = served_core_s
        entry.update_used()
        self._catch_up(account)
        if entry.used_core_s == used:
            return []
        return account.order(0 if entry.done else account.index(entry))

    def catch_up(self) -> None:
        """Bring every user's own clock up to the virtual time."""
        for account in self._users.values():
            self._catch_up(account)

    def take_done(self) -> list[str]:
        """Jobs that became virtually done since the last call."""
        done, self._newly_done = self._newly_done, []
        return done

    # ------------------------------------------------------------------ weights and slots

    def set_weight(self, user: str, weight: float) -> list[str]:
        """Give a user another weight for the work that it has left; gives the jobs whose finish changed."""
        weight = _weight(_of(user), weight)
        self._weights[user] = weight
        account = self._users.get(user)
        if account is None or account.weight == weight:
            return []
        self._catch_up(account)
        v = self._virtual_time
        account.start = v - (v - account.start) * account.weight / weight
        for entry in account.done:
            entry.away *= account.weight / weight
        account.weight = weight
        if account.backlogged:
            self._rate_changed(self._now_s)
        return self._link(account, 0)

    def set_slots(self, slots: int) -> None:
        """Serve with another number of slots from now on; 0 stops the virtual time."""
        self._slots = _slots(slots, least=0)
        self._rate_changed(self._now_s)

    # ------------------------------------------------------------------ accounts

    def _account(self, user: str) -> Account:
        account = self._users.get(user)
        if account is None:
            v = self._virtual_time
            weight = self._weights.get(user, self._default_weight)
            account = self._users[user] = Account(user, weight, start=v, finish=v, seen=v)
        return account

    def _entry(self, job: str) -> tuple[Account, VirtualJob]:
        try:
            return self._jobs[job]
        except KeyError:
            raise UnknownJobError(f"'job' must be one that was submitted (got {job!r})") from None

    def _link(self, account: Account, first: int) -> list[str]:
        """Link a chain again from a place on; the user enters, stays or leaves, as ``E`` and ``V`` say."""
        moved = account.link(first)
        finish = account.chain[-1].chain_finish if account.chain else account.start
        if account.backlogged:
            del self._departures[bisect_left(self._departures, (account.finish, account.user))]
        account.finish = finish
        if finish > self._virtual_time:
            insort(self._departures, (finish, account.user))
            if not account.backlogged:
                account.backlogged = True
                account.seen = self._virtual_time
                self._rate_changed(self._now_s)
        elif account.backlogged or account.chain:
            self._leave(account, self._now_s)
        return moved

    def _forget_if_idle(self, account: Account) -> None:
        if not account.known_jobs and not account.backlogged:
            del self._users[account.user]

    # ------------------------------------------------------------------ invariants

    def check(self) -> None:
        """Raise InvariantError if the state contradicts itself."""
        backlogged = [account for account in self._users.values() if account.backlogged]
        departures = sorted((account.finish, account.user) for account in backlogged)
        require_invariant(departures == self._departures, "departures are the users in the system, sorted")
        weight = math.fsum(account.weight for account in backlogged)
        require_invariant(self._total_weight == weight, "W is the weight of the users in the system")
        for name, account in self._users.items():
            within = account.finish > self._virtual_time
            require_invariant(account.backlogged == within, f"{name!r} is in the system exactly while V < E")
            account.check()
        require_invariant(self._anchor[1] <= self._virtual_time, "V does not go back")
        listed = {entry.job for account in self._users.values() for entry in account.done + account.chain}
        require_invariant(listed == self._jobs.keys(), "accounts hold the jobs that are known")
        owned = sum(account.known_jobs for account in self._users.values())
        require_invariant(owned == len(self._jobs), "each job belongs to one user")


def _of(user: str) -> str:
    return f"'weight' of user {user!r}"


def _weight(name: str, weight: float) -> float:
    low, high = WEIGHT_RANGE
    if not low <= require_positive(name, weight) <= high:
        raise FairQueueParameterError(f"{name} must be from {low:g} to {high:g} (got {weight!r})")
    return float(weight)


def _slots(slots: int, least: int = 1) -> int:
    if not isinstance(slots, int) or slots < least:
        raise FairQueueParameterError(f"'slots' must be a whole number of at least {least} (got {slots!r})")
    return slots
