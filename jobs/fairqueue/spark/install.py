"""Put the fair queue into a running Spark application, and take it out again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import structlog

from jobs.fairqueue.errors import AlreadyInstalledError, FairQueueParameterError, require_positive
from jobs.fairqueue.estimates import CostEstimator
from jobs.fairqueue.scheduler import FairScheduler, Snapshot
from jobs.fairqueue.spark.hook import LAST_PRIORITY, SchedulerHook, write
from jobs.fairqueue.spark.identity import JobIdentity, bounded, identify
from jobs.fairqueue.spark.ledger import Changes, Ledger, Sample
from jobs.fairqueue.spark.progress import StatusReader
from jobs.fairqueue.tasks import ADVISORY_TASK_RUN_TIME_S

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

_SLOTS_EVERY_S = 2.0
_SAVE_EVERY_S = 60.0
_REWRITES = 3

_installations: dict[str, Installation] = {}
_installing = threading.Lock()


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """How the fair queue works.

    Attributes
    ----------
    weights, default_weight
        Weight per user; users that are not named have the default.
    default_user
        User of jobs that name none.
    estimates
        File of learned costs, read at the start, written at the end and once a minute; None keeps them in
        memory only.
    advisory_task_run_time_s
        How long a task should run, seconds: a job about which nothing is known counts as that much per task.
    policy
        ``uwfq``, or ``cfq``: the same without users.
    grace_s
        For how long a user that has left can go on with a job where it stopped, seconds.
    poll_s
        Time between two looks at the status store, seconds.
    idle_s
        A job whose end is not known is over after this long without a stage, seconds. Known are the ends
        of operations of Spark Connect and of blocks of :func:`fairqueue.job` in classic sessions.
    history_s
        How far back :meth:`Installation.history` reaches, seconds.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    default_weight: float = 1.0
    default_user: str = "default"
    estimates: str | Path | None = None
    advisory_task_run_time_s: float = ADVISORY_TASK_RUN_TIME_S
    policy: Literal["uwfq", "cfq"] = "uwfq"
    grace_s: float = 2.0
    poll_s: float = 0.5
    idle_s: float = 10.0
    history_s: float = 1800.0

    def __post_init__(self) -> None:
        for user in (*self.weights, self.default_user):
            if not isinstance(user, str) or not user.strip():
                raise FairQueueParameterError(f"a user must have a name that is a text (got {user!r})")
        for name in ("advisory_task_run_time_s", "poll_s", "idle_s", "history_s"):
            require_positive(f"{name!r}", getattr(self, name))
        if self.policy not in ("uwfq", "cfq"):
            raise FairQueueParameterError(f"'policy' must be uwfq or cfq (got {self.policy!r})")


class Installation:
    """A fair queue at work in a Spark application; made by :func:`install`."""

    def __init__(self, context: SparkContext, options: InstallOptions) -> None:
        self.options = options
        self.application_id = str(context.applicationId)
        self._log = structlog.get_logger().bind(application=self.application_id)
        self._estimator = _estimator(options)
        self._counters: Counter[str] = Counter()
        self._hook = SchedulerHook(context, self._on_task_set)
        self._reader = StatusReader(context)
        self._slots = self._reader.slots()
        scheduler = FairScheduler(
            max(1, self._slots),  # executors may come later
            weights={bounded(user): weight for user, weight in options.weights.items()},
            default_weight=options.default_weight,
            grace_s=options.grace_s,
            estimator=self._estimator,
        )
        self._ledger = Ledger(
            scheduler,
            policy=options.policy,
            idle_s=options.idle_s,
            max_samples=max(1, round(options.history_s / options.poll_s)),
            default_task_s=options.advisory_task_run_time_s,
        )
        self._stop = threading.Event()
        self._slots_due_s = self._save_due_s = 0.0
        self._thread = threading.Thread(target=self._watch, name="fairqueue", daemon=True)
        self._hook.install()
        self._thread.start()

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()

    @property
    def installed(self) -> bool:
        """Whether Spark still asks the fair queue."""
        return not self._stop.is_set()

    @property
    def counters(self) -> dict[str, int]:
        """Counts since the start: task sets, priorities written, polls, errors by kind, nanoseconds."""
        return dict(self._counters)

    def snapshot(self) -> Snapshot:
        """State of the queue now; its times are :func:`time.monotonic`."""
        return self._ledger.snapshot(time.monotonic())

    def history(self, seconds: float) -> list[Sample]:
        """Who had the slots over the last seconds, one sample per poll."""
        return self._ledger.history(time.monotonic() - seconds)

    def sizes(self) -> dict[str, int]:
        """Number of jobs and task sets remembered."""
        return self._ledger.sizes()

    def set_weight(self, user: str, weight: float) -> None:
        """Give a user another weight from now on.

        Raises
        ------
        FairQueueParameterError
            The weight is not positive and finite.
        """
        self._write_locked(self._ledger.set_weight(time.monotonic(), bounded(user), weight))

    def open_job(self, properties: Mapping[str, str]) -> None:
        """The job with these properties begins; it is not over before :meth:`close_job`."""
        self._ledger.open_job(self._identify(properties).job)

    def close_job(self, properties: Mapping[str, str]) -> None:
        """Nothing more comes of the job with these properties: it is over when its last stage has ended."""
        self._ledger.close_job(self._identify(properties).job)

    def uninstall(self) -> None:
        """Restore Spark's own order for all task sets to come, and keep what was learned; idempotent.

        Task sets that are waiting keep their places.
        """
        self._restore()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._save()

    # ------------------------------------------------------------------ new task sets, under Spark's lock

    def _on_task_set(self, manager: Any, properties: Any) -> None:
        started = time.perf_counter_ns()
        try:
            self._order(manager, properties)
        except Exception as error:
            self._count_error("callback_errors", "a task set waits behind all others", error)
            self._put_last(manager)
        self._counters["task_sets"] += 1
        self._counters["callback_ns"] += time.perf_counter_ns() - started

    def _order(self, manager: Any, properties: Any) -> None:
        stage = _stage_of(manager.name())
        identity = self._identify(
            self._reader.properties(properties) if properties is not None else {},
            manager.priority,  # the number of the Spark job, until it is changed
        )
        tasks = manager.numTasks()
        changes = self._ledger.add_task_set(time.monotonic(), stage, identity, manager, tasks=tasks)
        for change in changes:
            write(change.task_set, change.priority)
        self._ledger.written(changes)
        self._counters["priorities_written"] += len(changes)

    def _put_last(self, manager: Any) -> None:
        """Spark's own priority, a small number, would be among the labels, before others' jobs."""
        try:
            write(manager, LAST_PRIORITY)
        except Exception as error:
            self._count_error("write_errors", "a task set keeps Spark's own priority", error)

    # ------------------------------------------------------------------ progress, in a thread of its own

    def _watch(self) -> None:
        while not self._stop.wait(self.options.poll_s):
            if self._has_ended():
                self._restore()
                self._save()
                return
            started = time.perf_counter_ns()
            try:
                self._poll()
            except Exception as error:
                if not self._has_ended():
                    self._count_error("poll_errors", "no progress is known for the moment", error)
            self._counters["polls"] += 1
            self._counters["poll_ns"] += time.perf_counter_ns() - started

    def _poll(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._slots_due_s:
            self._slots = self._reader.slots()
            self._slots_due_s = now_s + _SLOTS_EVERY_S
        reports = self._reader.stages(self._ledger.active_stages())
        for job, operation in self._ledger.paused_operations(now_s).items():
            if self._reader.is_over(operation):
                self._ledger.close_job(job)
        self._write_locked(self._ledger.report(now_s, reports, slots=self._slots))
        if now_s >= self._save_due_s:
            self._save()
            self._save_due_s = now_s + _SAVE_EVERY_S
        lost = self._hook.lost_calls()
        if lost > self._counters["calls_lost"]:
            self._counters["calls_lost"] = lost
            if not self._hook.is_alive():
                self._log.error("Spark does not reach Python any more: its own order is back")
                self._restore()

    def _write_locked(self, changes: Changes) -> None:
        """Write priorities; those that have moved meanwhile once more, at last with the next poll's."""
        for _ in range(_REWRITES):
            if not changes:
                return
            self._hook.write_locked((change.task_set, change.priority) for change in changes)
            self._counters["priorities_written"] += len(changes)
            changes = self._ledger.written(changes)

    def _identify(
        self, properties: Mapping[str, str], spark_job: Callable[[], int] = lambda: 0
    ) -> JobIdentity:
        return identify(properties, spark_job, default_user=self.options.default_user)

    def _has_ended(self) -> bool:
        """Whether the Spark application is over, or its JVM gone."""
        try:
            return self._reader.stopped()
        except Exception:
            return True

    def _restore(self) -> None:
        if self._stop.is_set():
            return
        self._stop.set()
        with _installing:
            _installations.pop(self.application_id, None)
        try:
            if not self._has_ended():
                self._hook.restore()
        except Exception as error:
            self._count_error("restore_errors", "Spark's own order is not back", error)

    def _save(self) -> None:
        """Keep what was learned; the file is written while the queue goes on."""
        if self.options.estimates is None:
            return
        try:
            learned = self._ledger.locked(self._estimator.snapshot)
            CostEstimator.write(learned, self.options.estimates)
        except Exception as error:
            self._count_error("save_errors", "learned costs are not saved", error)

    def _count_error(self, counter: str, consequence: str, error: Exception) -> None:
        self._counters[counter] += 1
        if self._counters[counter] == 1:  # the counter tells how often
            self._log.error(consequence, counter=counter, error=f"{type(error).__name__}: {error}")


def install(spark: SparkSession, options: InstallOptions | None = None, **settings: Any) -> Installation:
    """Let Spark run the jobs of this application's users in fair order.

    Parameters
    ----------
    spark
        Session of the driver itself, not a Spark Connect client; ``spark.scheduler.mode`` is FIFO, the
        default.
    options
        How; by default :class:`InstallOptions` with ``settings``.
    **settings
        Fields of :class:`InstallOptions`, instead of ``options``.

    Returns
    -------
    Installation
        Also a context manager that uninstalls at its end.

    Raises
    ------
    AlreadyInstalledError
        The application has a fair queue.
    HooksMissingError
        This Spark lacks a hook; :func:`use_pool` remains.
    FairQueueParameterError
        An option breaks its rule, or ``spark`` is a client or in FAIR mode.
    EstimatesFileError
        The file of learned costs is damaged.
    """
    if options is None:
        options = InstallOptions(**settings)
    elif settings:
        raise FairQueueParameterError("'options' and single settings exclude each other")
    context = _driver_context(spark)
    with _installing:
        if context.applicationId in _installations:
            raise AlreadyInstalledError("a fair queue is installed in this application already")
        installation = Installation(context, options)
        _installations[installation.application_id] = installation
    return installation


def uninstall(spark: SparkSession) -> None:
    """Take the fair queue out of this application; nothing happens where there is none."""
    if (found := installation_of(spark)) is not None:
        found.uninstall()


def installation_of(spark: SparkSession) -> Installation | None:
    """The fair queue of this application, if it was installed from this process."""
    return None if is_connect(spark) else _installations.get(spark.sparkContext.applicationId)


def use_pool(spark: SparkSession, user: str | None) -> None:
    """Run this thread's jobs in a FAIR pool of the user's own: what remains where the hooks are missing.

    Users then get equal shares, but short jobs wait for the long ones of the same user.

    Raises
    ------
    FairQueueParameterError
        ``spark`` is a client, or ``spark.scheduler.mode`` is not FAIR.
    """
    context = _driver_context(spark)
    mode = context.getConf().get("spark.scheduler.mode", "FIFO")
    if mode != "FAIR":
        raise FairQueueParameterError(f"'spark.scheduler.mode' must be FAIR (got {mode!r})")
    context.setLocalProperty("spark.scheduler.pool", user)  # type: ignore[arg-type]


def is_connect(spark: SparkSession) -> bool:
    """Whether this is a client of Spark Connect."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def _driver_context(spark: SparkSession) -> SparkContext:
    if is_connect(spark):
        raise FairQueueParameterError("'spark' must be the driver's own session (got a Spark Connect client)")
    return spark.sparkContext


def _estimator(options: InstallOptions) -> CostEstimator:
    path = None if options.estimates is None else Path(options.estimates)
    return CostEstimator() if path is None or not path.exists() else CostEstimator.load(path)


def _stage_of(name: str) -> tuple[int, int]:
    """Stage and attempt from a task set's name, such as ``TaskSet_12.0``."""
    stage, _, attempt = name.rpartition("_")[2].partition(".")
    return int(stage), int(attempt)
