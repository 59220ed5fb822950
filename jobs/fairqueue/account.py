"""The account of one user in the virtual system: its own clock and the chain of its jobs.

The theory, and the meaning of ``S``, ``E``, ``v``, ``d``, ``C``, ``D`` and ``U``, stand in
:mod:`jobs.fairqueue.clock`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field

from jobs.fairqueue.errors import require_invariant


@dataclass(slots=True, eq=False)
class VirtualJob:
    """A job as the virtual clock sees it; costs in core-seconds."""

    job: str
    number: int  # order of submission: breaks ties
    cost_core_s: float  # what the user has been charged for it in its present busy period
    own_finish: float  # d, on the user's own clock
    period: int  # the user's busy period in which it was charged
    settled_core_s: float = 0.0  # what it was charged in earlier busy periods
    served_core_s: float = 0.0  # what it has really had, in all periods
    used_core_s: float = 0.0  # U, the part of the present cost that it has really had
    chain_finish: float = math.nan  # C
    virtual_finish: float = math.nan  # D
    done: bool = False
    away: float = 0.0  # virtual time that its user has been away since it was done

    def place(self) -> tuple[float, int]:
        """Key of the order inside the user."""
        return self.own_finish, self.number

    @property
    def unused_core_s(self) -> float:
        """The part of the present cost that it has not had yet."""
        return self.cost_core_s - self.used_core_s

    def update_used(self) -> None:
        """The service had belongs to the costs of earlier busy periods first."""
        self.used_core_s = min(self.cost_core_s, max(0.0, self.served_core_s - self.settled_core_s))


@dataclass(slots=True, eq=False)
class Account:
    """A user's account; ``start`` and ``finish`` are virtual times, ``own_time`` is in core-seconds."""

    user: str
    weight: float
    start: float  # S
    finish: float  # E
    seen: float  # the virtual time to which own_time belongs
    own_time: float = 0.0  # v
    left_s: float = -math.inf  # when it last left the virtual system
    backlogged: bool = False
    period: int = 0
    chain: list[VirtualJob] = field(default_factory=list)
    done: list[VirtualJob] = field(default_factory=list)  # virtually done, in the order of d
    known_jobs: int = 0
    service_core_s: float = 0.0  # what its jobs have really used since it is known

    def enter_anew(self, virtual_time: float) -> None:
        """New work of a user that is not in the system counts from the virtual time on."""
        away = max(0.0, virtual_time - self.start)
        self.start += away
        self.period += 1
        for job in self.done:
            job.away += away

    def catch_up(self, virtual_time: float) -> list[VirtualJob]:
        """Move the own clock to the virtual time; gives the jobs that are virtually done by then."""
        done = 0
        while done < len(self.chain):
            job, unfinished = self.chain[done], len(self.chain) - done
            ahead = max(0.0, job.own_finish - self.own_time)
            passed = self.seen + ahead * unfinished / self.weight
            if passed > virtual_time:
                self.own_time += max(0.0, virtual_time - self.seen) * self.weight / unfinished
                break
            self.seen = passed
            done += 1
            self.own_time = max(self.own_time, job.own_finish)
        self.seen = virtual_time
        return self._take_done(done)

    def leave(self, virtual_time: float, left_s: float) -> list[VirtualJob]:
        """All work is virtually served; gives the jobs that are virtually done by that."""
        if self.chain:
            self.own_time = max(self.own_time, self.chain[-1].own_finish)
        self.left_s, self.seen = left_s, virtual_time
        return self._take_done(len(self.chain))

    def _take_done(self, count: int) -> list[VirtualJob]:
        done = self.chain[:count]
        del self.chain[:count]
        self.done += done
        for job in done:
            job.done = True
        if done:
            self.start = done[-1].chain_finish
        return done

    def insert(self, job: VirtualJob) -> int:
        """Put a job into the chain; gives its place."""
        place = self.index(job)
        self.chain.insert(place, job)
        return place

    def index(self, job: VirtualJob) -> int:
        """Place of a job in the chain, or where it belongs."""
        return bisect_left(self.chain, job.place(), key=VirtualJob.place)

    def charge(self, job: VirtualJob, change_core_s: float) -> int:
        """Change what a job costs; gives the first place from which the chain is to be linked again."""
        if job.period != self.period and change_core_s <= 0:
            return len(self.chain)
        first = self._take_out(job)
        if job.period != self.period:
            job.settled_core_s += job.cost_core_s
            job.period, job.cost_core_s, job.own_finish = self.period, 0.0, self.own_time
            job.away = 0.0
        change = max(change_core_s, -job.cost_core_s)
        started = job.cost_core_s if job.done else 0.0  # its part of S
        job.cost_core_s += change
        job.own_finish += change
        job.update_used()
        was_done, job.done = job.done, job.own_finish <= self.own_time
        if not job.done and not was_done:
            return min(first, self.insert(job))
        if job.done:
            insort(self.done, job, key=VirtualJob.place)
        else:
            self.insert(job)
        self.start += ((job.cost_core_s if job.done else 0.0) - started) / self.weight
        return 0

    def _take_out(self, job: VirtualJob) -> int:
        """Remove a job from where it stands; gives its place there."""
        jobs = self.done if job.done else self.chain
        place = bisect_left(jobs, job.place(), key=VirtualJob.place)
        del jobs[place]
        return place

    def forget(self, job: VirtualJob) -> list[str]:
        """Drop a virtually done job, all of whose cost counts as used; gives the jobs that moved."""
        self._take_out(job)
        return self.order(0) if job.unused_core_s else []

    def link(self, first: int) -> list[str]:
        """Link the chain again from a place on; gives the jobs whose virtual finish changed."""
        finish = self.chain[first - 1].chain_finish if first else self.start
        for job in self.chain[first:]:
            finish += job.cost_core_s / self.weight
            job.chain_finish = finish
        return self.order(len(self.chain))

    def order(self, last: int) -> list[str]:
        """Virtual finishes of the jobs before a place of the chain; gives the jobs for which it changed."""
        moved = []
        used = sum(job.used_core_s for job in self.chain[last:])
        for job in reversed(self.chain[:last]):
            moved += _move(job, job.chain_finish + used / self.weight)
            used += job.used_core_s
        for job in reversed(self.done):
            moved += _move(job, self.start - job.away + used / self.weight)
            used -= job.unused_core_s
        return moved

    def check(self) -> None:
        """Raise InvariantError if the account contradicts itself."""
        require_invariant(self.backlogged or not self.chain, f"{self.user!r} has left without virtual work")
        require_invariant(self.known_jobs > 0 or self.backlogged, f"{self.user!r} has jobs or debt")
        places = [job.place() for job in self.done + self.chain]
        require_invariant(places == sorted(places), f"the jobs of {self.user!r} are in the order of d")
        require_invariant(all(job.done for job in self.done), f"{self.user!r} has jobs aside that are done")
        used = sum(job.used_core_s for job in self.chain)
        unused = sum(job.unused_core_s for job in self.done)
        costs = sum(job.cost_core_s for job in self.done + self.chain)
        finish = self.start
        close = 1e-9 * (1 + abs(finish) + costs / self.weight)
        for job in self.done:
            unused -= job.unused_core_s
            expected = finish - job.away + (used - unused) / self.weight
            holds = abs(job.virtual_finish - expected) <= close
            require_invariant(holds, f"D of {job.job!r} counts what its user has used since it was done")
        for job in self.done + self.chain:
            require_invariant(0 <= job.used_core_s <= job.cost_core_s, f"{job.job!r} is charged its use")
        for job in self.chain:
            require_invariant(not job.done, f"{job.job!r} in a chain is not done")
            finish += job.cost_core_s / self.weight
            used -= job.used_core_s
            holds = abs(job.virtual_finish - finish - used / self.weight) <= close
            require_invariant(holds, f"D of {job.job!r} counts the chain up to it and what is used after it")
        require_invariant(abs(self.finish - finish) <= close, f"E of {self.user!r} is the end of its chain")


def _move(job: VirtualJob, virtual_finish: float) -> list[str]:
    """Give a job its virtual finish; its name, if that is another one."""
    if virtual_finish == job.virtual_finish:
        return []
    job.virtual_finish = virtual_finish
    return [job.job]
