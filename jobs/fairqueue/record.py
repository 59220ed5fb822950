"""What the fair queue knows of one job."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from jobs.fairqueue.snapshot import JobSnapshot

Kin: TypeAlias = tuple[str | None, str | None]


@dataclass(slots=True, eq=False)
class JobRecord:
    """A job, its stages in the queue with their numbers, and its service so far; costs in core-seconds."""

    job: str
    user: str
    number: int
    job_class: str | None
    size: float | None
    submitted_s: float
    declared_core_s: float | None
    first_estimate_core_s: float
    estimated_core_s: float
    expected_stages: int | None
    stages: dict[Hashable, int] = field(default_factory=dict)
    stages_seen: int = 0
    tasks_added: int = 0
    realised_core_s: float = 0.0
    finished_tasks: int = 0
    known_tasks: int = 0
    finished: bool = False

    @property
    def kin(self) -> Kin:
        """Jobs whose costs are guessed from one experience: a user's declared ones, or those of a class."""
        return (None, self.job_class) if self.declared_core_s is None else (self.user, None)

    def measured_core_s(self) -> float | None:
        """Cost by the job's own finished tasks; None before the first one."""
        if not self.finished_tasks:
            return None
        known_tasks = max(self.known_tasks, self.tasks_added, self.finished_tasks)
        cost = self.realised_core_s / self.finished_tasks * known_tasks
        expected = self.expected_stages or 0
        if expected > self.stages_seen:
            cost += self.first_estimate_core_s * (1 - self.stages_seen / expected)
        return cost

    def snapshot(self, virtual_finish: float) -> JobSnapshot:
        """The same in plain values."""
        state: Literal["waiting", "running", "finished"] = "running" if self.finished_tasks else "waiting"
        return JobSnapshot(
            job=self.job,
            user=self.user,
            job_class=self.job_class,
            submitted_s=self.submitted_s,
            estimated_core_s=self.estimated_core_s,
            realised_core_s=self.realised_core_s,
            virtual_finish=virtual_finish,
            stages=len(self.stages),
            state="finished" if self.finished else state,
        )
