"""The account of one user in the virtual system: its own clock and the chain of its jobs.

The theory, and the meaning of ``S``, ``E``, ``v``, ``d``, ``C``, ``D`` and ``U``, stand in
:mod:`jobs.fairqueue.clock`.
"""

from __future__ import annotations

import math
from bisect import bisect_left
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

    def place(self) -> tuple[float, int]:
        """Key of the order inside the user."""
        return self.own_finish, self.number

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
    known_jobs: int = 0
    service_core_s: float = 0.0  # what its jobs have really used since it is known

    def enter_anew(self, virtual_time: float) -> None:
        """New work of a user that is not in the system counts from the virtual time on."""
        self.start = max(self.start, virtual_time)
        self.period += 1

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
        if job.period != self.period:
            job.settled_core_s += job.cost_core_s
            job.period, job.cost_core_s, job.own_finish = self.period, 0.0, self.own_time
        change = max(change_core_s, -job.cost_core_s)
        own_finish = job.own_finish + change
        first = 0
        if job.done and (change <= 0 or own_finish <= self.own_time):
            job.virtual_finish += change / self.weight
            self.start += change / self.weight
        elif job.done:
            self.start -= job.cost_core_s / self.weight
            job.done = False
        else:
            first = self.index(job)
            del self.chain[first]
        job.cost_core_s += change
        job.own_finish = own_finish
        job.update_used()
        return first if job.done else min(first, self.insert(job))

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
            finish = job.chain_finish + used / self.weight
            used += job.used_core_s
            if finish != job.virtual_finish:
                job.virtual_finish = finish
                moved.append(job.job)
        return moved

    def check(self) -> None:
        """Raise InvariantError if the account contradicts itself."""
        require_invariant(self.backlogged or not self.chain, f"{self.user!r} has left without virtual work")
        require_invariant(self.known_jobs > 0 or self.backlogged, f"{self.user!r} has jobs or debt")
        places = [job.place() for job in self.chain]
        require_invariant(places == sorted(places), f"the chain of {self.user!r} is in the order of d")
        used = sum(job.used_core_s for job in self.chain)
        finish = self.start
        close = 1e-9 * (1 + abs(finish) + sum(job.cost_core_s for job in self.chain) / self.weight)
        for job in self.chain:
            require_invariant(not job.done, f"{job.job!r} in a chain is not done")
            require_invariant(0 <= job.used_core_s <= job.cost_core_s, f"{job.job!r} is charged its use")
            finish += job.cost_core_s / self.weight
            used -= job.used_core_s
            holds = abs(job.virtual_finish - finish - used / self.weight) <= close
            require_invariant(holds, f"D of {job.job!r} counts the chain up to it and what is used after it")
        require_invariant(abs(self.finish - finish) <= close, f"E of {self.user!r} is the end of its chain")
