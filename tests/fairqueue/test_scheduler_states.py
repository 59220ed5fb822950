"""The scheduler under any order of events: its invariants hold after each one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from jobs.fairqueue.errors import InvariantError
from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.scheduler import FairScheduler

COSTS = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.sampled_from([1.0, 2.0, 4.0, 26.9]))
USERS = st.sampled_from(["alice", "bob", "carol", "dave"])
STEPS = st.one_of(st.just(0.0), st.floats(0, 3), st.floats(100, 1e5), st.floats(-5, 0))


@pytest.mark.parametrize(
    ("target", "name", "value", "rule"),
    [
        ("_clock", "_total_weight", 3.5, "W is the weight of the users in the system"),
        ("_clock", "_departures", [], "departures are the users in the system"),
        ("_clock", "_virtual_time", -1.0, "V does not go back"),
        ("_clock", "_virtual_time", 1e9, "is in the system exactly while V < E"),
        ("alice", "start", 7.0, "counts the chain up to it"),
        ("alice", "known_jobs", 5, "each job belongs to one user"),
        ("alice", "chain", [], "E of 'alice' is the end of its chain"),
        ("alice", "weight", 2.0, "W is the weight"),
        ("_labels", "_labels", {"s": 5, "t": 5}, "labels increase strictly"),
        ("_labels", "_labels", {"s": 5, "t": 2**31}, "within"),
        ("_scheduler", "_job_of", {}, "each waiting stage has one known job"),
    ],
)
def test_check_names_what_is_broken(target: str, name: str, value: object, rule: str) -> None:
    scheduler = FairScheduler(4)
    for job, stage in (("x", "s"), ("y", "t")):
        scheduler.submit_job(0, job, "alice", cost_core_s=5.0)
        scheduler.add_stage(0, job, stage)
    scheduler.check()
    broken: Any = {"_scheduler": scheduler, "alice": scheduler._clock.users["alice"]}.get(target)
    setattr(broken or getattr(scheduler, target), name, value)
    with pytest.raises(InvariantError, match=f"broken invariant: .*{rule}"):
        scheduler.check()


class Events(RuleBasedStateMachine):
    """Submits, stages, observations and finishes in any order, on a clock that may jump back."""

    jobs: Bundle[str] = Bundle("jobs")
    stages: Bundle[tuple[str, int]] = Bundle("stages")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = FairScheduler(4, weights={"bob": 3.0}, estimator=CostEstimator(5.0, max_classes=2))
        self.now_s = 0.0
        self.written: dict[Any, int] = {}
        self.waiting: set[Any] = set()
        self.virtual_time = 0.0
        self.numbers = 0

    def step(self, by_s: float) -> float:
        self.now_s += by_s
        return self.now_s

    @rule(
        target=jobs,
        by_s=STEPS,
        user=USERS,
        cost=st.none() | COSTS,
        name=st.sampled_from([None, "a", "b", "c"]),
    )
    def submit(self, by_s: float, user: str, cost: float | None, name: str | None) -> str:
        self.numbers += 1
        job = f"job-{self.numbers}"
        self.scheduler.submit_job(self.step(by_s), job, user, cost_core_s=cost, job_class=name, size=2.0)
        return job

    @rule(job=jobs, by_s=STEPS, user=USERS)
    def submit_again(self, job: str, by_s: float, user: str) -> None:
        self.scheduler.submit_job(self.step(by_s), job, user, cost_core_s=3.0)

    @rule(target=stages, job=jobs, by_s=STEPS, tasks=st.integers(1, 50))
    def add_stage(self, job: str, by_s: float, tasks: int) -> tuple[str, int]:
        self.numbers += 1
        stage = (job, self.numbers)
        self.scheduler.submit_job(self.step(by_s), job, "alice", cost_core_s=1.0)  # in case it is forgotten
        label = self.scheduler.add_stage(self.now_s, job, stage, tasks=tasks)
        self.waiting.add(stage)
        assert label == self.scheduler.label(stage)
        return stage

    @rule(job=jobs, by_s=STEPS, core_s=COSTS, finished=st.integers(0, 40), more=st.integers(0, 40))
    def observe(self, job: str, by_s: float, core_s: float, finished: int, more: int) -> None:
        self.scheduler.observe(
            self.step(by_s),
            job,
            finished_core_s=core_s,
            finished_tasks=finished,
            known_tasks=finished + more,
        )

    @rule(stage=consumes(stages), by_s=STEPS)
    def finish_stage(self, stage: tuple[str, int], by_s: float) -> None:
        self.scheduler.finish_stage(self.step(by_s), stage)
        self.scheduler.finish_stage(self.now_s, stage)
        self.waiting.discard(stage)

    @rule(job=jobs, by_s=STEPS, core_s=st.none() | COSTS, learn=st.booleans())
    def finish_job(self, job: str, by_s: float, core_s: float | None, learn: bool) -> None:
        self.scheduler.finish_job(self.step(by_s), job, core_s=core_s, learn=learn)

    @rule(user=USERS, by_s=STEPS, weight=st.floats(0.1, 10))
    def set_weight(self, user: str, by_s: float, weight: float) -> None:
        self.scheduler.set_weight(self.step(by_s), user, weight)

    @rule(slots=st.integers(0, 64), by_s=STEPS)
    def set_slots(self, slots: int, by_s: float) -> None:
        self.scheduler.set_slots(self.step(by_s), slots)

    @rule(by_s=STEPS)
    def look(self, by_s: float) -> None:
        self.scheduler.snapshot(self.step(by_s))

    @precondition(lambda self: self.waiting)
    @rule()
    def write_labels(self) -> None:
        changes = self.scheduler.take_changes()
        self.written = {stage: label for stage, label in self.written.items() if stage in self.waiting}
        assert all(self.written.get(stage) != label for stage, label in changes.items())
        self.written.update(changes)
        order = self.scheduler.order()
        assert set(order) == self.waiting
        assert order == sorted(self.waiting, key=self.written.__getitem__)

    @invariant()
    def consistent(self) -> None:
        self.scheduler.check()
        assert self.scheduler.virtual_time >= self.virtual_time
        self.virtual_time = self.scheduler.virtual_time


TestEvents = Events.TestCase
TestEvents.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
