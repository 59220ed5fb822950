"""How many tasks a job should have, so that none keeps a slot for long from whoever comes next."""

from __future__ import annotations

import math

from jobs.fairqueue.errors import require_non_negative, require_positive

ADVISORY_TASK_RUN_TIME_S = 0.5
"""How long a task should run at most where nothing else is asked for (arXiv 2510.15485)."""


def n_tasks(cost_core_s: float, *, advisory_task_run_time_s: float = ADVISORY_TASK_RUN_TIME_S) -> int:
    """Number of tasks of a job of this cost: ``ceil(cost / advisory task run time)``, at least one.

    Raises
    ------
    FairQueueParameterError
        The cost is negative or not finite, or the run time is not positive.
    """
    require_non_negative("'cost_core_s'", cost_core_s)
    require_positive("'advisory_task_run_time_s'", advisory_task_run_time_s)
    return max(1, math.ceil(cost_core_s / advisory_task_run_time_s * (1 - 1e-12)))
