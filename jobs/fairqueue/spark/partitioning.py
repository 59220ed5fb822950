"""Runtime partitioning: how many tasks a job should have so that none runs for long.

Tasks are never interrupted, so whoever comes next waits for one to end. If no task runs longer than the
advisory task run time, neither does that wait [1]_.

References
----------
.. [1] "Balancing Fairness and Performance in Multi-User Spark Workloads with Dynamic Scheduling",
   arXiv 2510.15485.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.fairqueue.errors import require_positive
from jobs.fairqueue.tasks import ADVISORY_TASK_RUN_TIME_S, n_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_TASKS = 100_000
_SMALLEST_BYTES = 1 << 16


def partition_settings(
    cost_core_s: float,
    input_bytes: int,
    *,
    shuffle_bytes: int | None = None,
    advisory_task_run_time_s: float = ADVISORY_TASK_RUN_TIME_S,
) -> dict[str, str]:
    """Spark SQL settings that cut scans and shuffles of a query into tasks of the advisory run time.

    Parameters
    ----------
    cost_core_s
        Estimated cost of a pass over the input, core-seconds.
    input_bytes
        Size of the files read.
    shuffle_bytes
        Size of what is shuffled; by default that of the input.
    advisory_task_run_time_s
        How long a task should run at most.

    Raises
    ------
    FairQueueParameterError
        A number breaks its rule.
    """
    require_positive("'input_bytes'", input_bytes)
    shuffled = input_bytes if shuffle_bytes is None else require_positive("'shuffle_bytes'", shuffle_bytes)
    tasks = min(MAX_TASKS, n_tasks(cost_core_s, advisory_task_run_time_s=advisory_task_run_time_s))
    return {
        "spark.sql.files.maxPartitionBytes": _bytes_each(input_bytes, tasks),
        "spark.sql.files.minPartitionNum": "1",  # so that the size alone decides; Spark would round it down
        "spark.sql.files.openCostInBytes": "0",  # else many small files fill a partition by their number
        "spark.sql.adaptive.advisoryPartitionSizeInBytes": _bytes_each(shuffled, tasks),
        "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
        "spark.sql.shuffle.partitions": str(tasks),
    }


@contextmanager
def sql_conf(
    spark: SparkSession,
    cost_core_s: float,
    input_bytes: int,
    *,
    shuffle_bytes: int | None = None,
    advisory_task_run_time_s: float = ADVISORY_TASK_RUN_TIME_S,
) -> Iterator[dict[str, str]]:
    """Set :func:`partition_settings` in a session, for the block; afterwards the settings are as before.

    The settings are the session's, not the thread's: other threads of one session see them too.
    """
    settings = partition_settings(
        cost_core_s,
        input_bytes,
        shuffle_bytes=shuffle_bytes,
        advisory_task_run_time_s=advisory_task_run_time_s,
    )
    before = {name: spark.conf.get(name, None) for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(name, value)
        yield settings
    finally:
        for name, previous in before.items():
            if previous is None:
                spark.conf.unset(name)
            else:
                spark.conf.set(name, previous)


def _bytes_each(total_bytes: float, tasks: int) -> str:
    return f"{max(_SMALLEST_BYTES, math.ceil(total_bytes / tasks))}b"
