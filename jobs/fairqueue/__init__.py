"""User Weighted Fair Queuing on stock Spark: many users, one application, fair shares.

::

    from jobs import fairqueue

    fairqueue.install(spark, weights={"alice": 2.0})
    with fairqueue.job(spark, user="alice", job_class="nightly report"):
        spark.table("sales").groupBy("day").count().collect()

Clients of Spark Connect need no change: their user and their operations are known. Importing this package
imports no Spark.
"""

from jobs.fairqueue.errors import (
    AlreadyInstalledError,
    EstimatesFileError,
    FairQueueError,
    FairQueueParameterError,
    HooksMissingError,
    InvariantError,
    UnknownJobError,
)
from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.scheduler import FairScheduler, JobSnapshot, Snapshot, UserSnapshot
from jobs.fairqueue.spark.install import (
    Installation,
    InstallOptions,
    install,
    installation_of,
    uninstall,
    use_pool,
)
from jobs.fairqueue.spark.job import job
from jobs.fairqueue.spark.ledger import Sample
from jobs.fairqueue.spark.partitioning import partition_settings, sql_conf
from jobs.fairqueue.tasks import ADVISORY_TASK_RUN_TIME_S, n_tasks

__all__ = [
    "ADVISORY_TASK_RUN_TIME_S",
    "AlreadyInstalledError",
    "CostEstimator",
    "EstimatesFileError",
    "FairQueueError",
    "FairQueueParameterError",
    "FairScheduler",
    "HooksMissingError",
    "InstallOptions",
    "Installation",
    "InvariantError",
    "JobSnapshot",
    "Sample",
    "Snapshot",
    "UnknownJobError",
    "UserSnapshot",
    "install",
    "installation_of",
    "job",
    "n_tasks",
    "partition_settings",
    "sql_conf",
    "uninstall",
    "use_pool",
]
