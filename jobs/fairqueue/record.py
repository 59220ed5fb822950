"""What the fair queue knows of one job."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from jobs.fairqueue.snapshot import JobSnapshot

_ESTIMATE_TASKS = 2  # how many finished tasks an estimate is worth
_PLAUSIBLE = 4.0  # an estimate above so many times what is measured is taken for that


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
    informed: bool  # whether the first estimate is more than a default
    expected_stages: int | None
    stages: dict[Hashable, int] = field(default_factory=dict)
    stages_seen: int = 0
    tasks_added: int = 0
    realised_core_s: float = 0.0
    finished_tasks: int = 0
    known_tasks: int = 0
    running_tasks: int = 0
    finished: bool = False

    @property
    def guessed_class(self) -> str | None:
        """The class that the cost is guessed by; None where it is declared, or there is no class."""
        return self.job_class if self.declared_core_s is None else None

    def measured_core_s(self) -> float | None:
        """Cost by the job's own finished tasks; None before the first one."""
        if not self.finished_tasks:
            return None
        known_tasks = max(self.known_tasks, self.tasks_added, self.finished_tasks)
        expected = self.expected_stages or 0
        unknown = max(0.0, 1 - self.stages_seen / expected) if expected else 0.0
        weight = _ESTIMATE_TASKS if self.informed else 0
        estimated_task_s = min(
            self.first_estimate_core_s * (1 - unknown) / known_tasks,
            _PLAUSIBLE * self.realised_core_s / self.finished_tasks,
        )
        task_s = (self.realised_core_s + weight * estimated_task_s) / (self.finished_tasks + weight)
        waiting_tasks = known_tasks - self.finished_tasks
        return self.realised_core_s + waiting_tasks * task_s + self.first_estimate_core_s * unknown

    def snapshot(self, virtual_finish: float) -> JobSnapshot:
        """The same in plain values."""
        state: Literal["waiting", "running", "idle", "finished"] = "waiting" if self.stages else "idle"
        if self.running_tasks:
            state = "running"
        if self.finished:
            state = "finished"
        return JobSnapshot(
            job=self.job,
            user=self.user,
            job_class=self.job_class,
            submitted_s=self.submitted_s,
            estimated_core_s=self.estimated_core_s,
            realised_core_s=self.realised_core_s,
            virtual_finish=virtual_finish,
            stages=len(self.stages),
            running_tasks=self.running_tasks,
            state=state,
        )
