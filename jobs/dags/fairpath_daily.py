"""Every night: new interactions and feedback become a graph, fingerprints, a router and a release.

The steps are those of ``fairpath pipeline``, each a command of Fairpath's own environment. ``conf/airflow``
shows how this is installed; :mod:`fairpath_dag_settings` says what can be set.
"""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseOperator, CronDataIntervalTimetable, Param
from croniter import croniter  # type: ignore[import-untyped]

if (_folder := str(Path(__file__).parent)) not in sys.path:  # not every command of Airflow puts it there
    sys.path.append(_folder)
from fairpath_dag_settings import DagConfigError, DagSettings, ScheduleSettings, load
from fairpath_dag_tasks import AS_CONFIGURED, DeliveriesSensor, PipelineStep

DOC = """\
### Fairpath, every night

Deliveries and feedback up to the end of the data interval become a graph, fingerprints, a router and, if the
gate says that it is no worse, a release, which running services pick up within a second.

- **A step failed**: its message names what is wrong. Put it right and clear the task: steps resume, and do
  nothing where their inputs have not changed. Exit code 2 (usage or configuration) is not tried again by
  itself. Exit code 75 (*not yet*): another run is at work in the same folder.
- **`report` and `notify`** run whatever happened before them; `outcome` is red if any step was.
- **A release was refused**: `publish` is green, its result and the report say why.
- **`ready` was skipped**: deliveries were missing for too long, and the run went on with what was there.
  When they have come, clear the run, or leave it: the next run takes late rows as well.
- **Earlier days**: `airflow backfill create --dag-id fairpath_daily --from-date ... --to-date ...`.
- **Back to an earlier release**: `fairpath releases rollback ROOT`.
"""
TIPS = {
    "collect": "Reads deliveries and feedback, checks them, and sets aside what the evaluation will ask",
    "graph": "Builds the graph of users and items; nodes that an earlier run knew keep their ids",
    "fingerprints": "Personalised PageRank of every node: who and what is near to whom; computed anew where "
    "the changes since an earlier run matter",
    "train": "Trains the router on the choices",
    "evaluate": "Compares the candidate with the current release on what was set aside",
    "publish": "Publishes the candidate, if the gate's written rule agrees; a refusal is no failure",
    "report": "Writes report.json and report.html of this run, also of a failed one",
    "notify": "Tells the configured address how the run went",
}
PARAMS = {
    "until": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="Until",
        description="Rows at or after this time do not take part; empty for the end of the data interval.",
    ),
    "engine": Param(
        AS_CONFIGURED,
        type="string",
        enum=[AS_CONFIGURED, "local", "spark", "dask"],
        title="Engine",
        description="What computes the fingerprints.",
    ),
    "publish": Param(
        True, type="boolean", title="Publish", description="Off: everything but the publication is done."
    ),
    "dry_run": Param(
        False, type="boolean", title="Dry run", description="Each step prints its settings and does nothing."
    ),
}


def fingerprints(settings: DagSettings, **common: Any) -> BaseOperator:
    """The task that computes fingerprints, where the settings say."""
    if settings.fingerprints.by == "spark-submit":
        from fairpath_dag_spark import SparkSubmitStep

        return SparkSubmitStep(settings=settings, **common)
    environment = {}
    if settings.fingerprints.by == "spark-server":  # by the environment: the URL may hold a token
        environment = {
            "FAIRPATH_SPARK__REMOTE": settings.fingerprints.remote,
            "FAIRPATH_SPARK__MASTER": "none",
        }
    return PipelineStep(step="fingerprints", settings=settings, environment=environment, **common)


def train(settings: DagSettings, **common: Any) -> BaseOperator:
    """The task that trains, where the settings say."""
    if settings.training.by == "kubernetes":
        from fairpath_dag_pod import PodStep

        return PodStep(settings=settings, **common)
    return PipelineStep(step="train", settings=settings, **common)


def timetable(schedule: ScheduleSettings) -> CronDataIntervalTimetable:
    """The data intervals.

    Raises
    ------
    DagConfigError
        Airflow's cron does not understand the schedule, or it never comes.
    """
    try:
        croniter(schedule.cron).get_next()
    except ValueError as error:  # all of croniter's are
        raise DagConfigError(
            f"[schedule] 'cron' must be a schedule that Airflow understands (got {schedule.cron!r}: {error})"
        ) from None
    return CronDataIntervalTimetable(schedule.cron, timezone=schedule.timezone)


def build(settings: DagSettings) -> DAG:
    """The DAG: ``ready``, then the steps in a row, then ``outcome``, which is red if any of them was.

    ``report`` and ``notify`` run whatever happened before them, so it is not they who tell how the run went.
    """
    schedule, retries = settings.schedule, settings.retries
    zone = ZoneInfo(schedule.timezone)
    with DAG(
        "fairpath_daily",
        description="New interactions and feedback become a better release",
        doc_md=DOC,
        schedule=timetable(schedule),
        start_date=datetime(schedule.start.year, schedule.start.month, schedule.start.day, tzinfo=zone),
        catchup=schedule.catchup,
        max_active_runs=1,
        tags=["fairpath"],
        params=PARAMS,
        default_args={
            "retries": retries.times,
            "retry_delay": timedelta(seconds=retries.delay_s),
            "retry_exponential_backoff": retries.factor,
            "max_retry_delay": timedelta(seconds=retries.longest_delay_s),
        },
    ) as dag:
        ready = DeliveriesSensor(
            task_id="ready", settings=settings, doc_md="Waits for the deliveries of the interval"
        )
        pools = {"fingerprints": settings.pools.spark, "train": settings.pools.gpu}
        # A skipped 'ready' or 'publish' stops nothing; a failed step stops all but the account of it.
        rules = {"collect": "none_failed", "report": "all_done", "notify": "all_done"}
        steps: list[BaseOperator] = []
        for step, tip in TIPS.items():
            common: dict[str, Any] = {
                "task_id": step,
                "doc_md": tip,
                "execution_timeout": timedelta(seconds=settings.timeouts_s[step]),
                "trigger_rule": rules.get(step, "all_success"),
                "pool": pools.get(step, "default_pool"),
            }
            if step == "fingerprints":
                steps.append(fingerprints(settings, **common))
            elif step == "train":
                steps.append(train(settings, **common))
            else:
                steps.append(PipelineStep(step=step, settings=settings, **common))
        before: BaseOperator = ready
        for task in steps:
            before >> task
            before = task
        outcome = EmptyOperator(
            task_id="outcome", doc_md="Red if any step failed", trigger_rule="none_failed", retries=0
        )
        [ready, *steps] >> outcome
    return dag


dag = build(load())
