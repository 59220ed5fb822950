"""What Spark's status store knows about stages: service, tasks, ends. It works with the web page off.

One call fetches all running and waiting stages as JSON, so a look costs few round trips however many there
are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jobs.fairqueue.spark.identity import Operation

if TYPE_CHECKING:
    from pyspark import SparkContext

Stage = tuple[int, int]
"""A stage and its attempt."""

_STAGE_DATA = "org.apache.spark.status.api.v1.StageData"
_LONG_FIELDS = ("name", "description", "details", "rddIds", "accumulatorUpdates", "schedulingPool")


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Progress of one stage attempt.

    Attributes
    ----------
    state
        ``lost`` where the store no longer has it.
    finished_core_s, finished_tasks
        Core-seconds of the finished tasks, failed and killed ones included, and their number.
    tasks, running_tasks
        All tasks, and those that hold a slot now.
    """

    state: Literal["active", "complete", "failed", "lost"]
    finished_core_s: float = 0.0
    finished_tasks: int = 0
    tasks: int = 0
    running_tasks: int = 0


class StatusReader:
    """Reads the status store of a Spark application.

    Parameters
    ----------
    context
        Context of the driver.
    """

    def __init__(self, context: SparkContext) -> None:
        jvm: Any = context._jvm
        self._jvm = jvm
        gateway: Any = context._gateway
        self._context: Any = context._jsc.sc()
        self._store = self._context.statusStore()
        self._mapper = jvm.com.fasterxml.jackson.databind.ObjectMapper()
        scala = getattr(jvm.com.fasterxml.jackson.module.scala, "DefaultScalaModule$")
        self._mapper.registerModule(getattr(scala, "MODULE$"))
        ignored = gateway.new_array(jvm.java.lang.String, len(_LONG_FIELDS))
        for position, name in enumerate(_LONG_FIELDS):
            ignored[position] = name
        annotation = jvm.com.fasterxml.jackson.annotation
        stage_class = jvm.py4j.reflection.ReflectionUtil.classForName(_STAGE_DATA)
        override = self._mapper.configOverride(stage_class)
        ignore = getattr(annotation, "JsonIgnoreProperties$Value").forIgnoredProperties(ignored)
        override.setIgnorals(ignore)
        include = getattr(annotation, "JsonInclude$Value")
        non_default = getattr(annotation, "JsonInclude$Include").NON_DEFAULT
        override.setInclude(include.construct(non_default, non_default))
        self._no_statuses = jvm.java.util.ArrayList()
        self._no_quantiles = gateway.new_array(jvm.double, 0)
        self._task_cpus = int(context.getConf().get("spark.task.cpus", "1"))

    def properties(self, properties: Any) -> dict[str, str]:
        """A ``java.util.Properties`` in one round trip."""
        found: dict[str, str] = json.loads(self._mapper.writeValueAsString(properties))
        return found

    def stages(self, wanted: Iterable[Stage]) -> dict[Stage, StageProgress]:
        """Progress of these stage attempts."""
        wanted = list(wanted)
        if not wanted:
            return {}
        active = json.loads(self._mapper.writeValueAsString(self._store.activeStages()))
        found = {_stage(data): _progress(data) for data in active}
        return {stage: found.get(stage) or self._ended(stage) for stage in wanted}

    def slots(self) -> int:
        """Number of tasks that the executors run at the same time; 0 while there are none."""
        executors = json.loads(self._mapper.writeValueAsString(self._store.executorList(True)))
        return sum(int(executor["totalCores"]) // self._task_cpus for executor in executors)

    def is_over(self, operation: Operation) -> bool:
        """Whether Spark Connect, in this driver, has let go of an operation; False where that is unknown."""
        from py4j.protocol import Py4JError

        try:
            service = self._jvm.org.apache.spark.sql.connect.service
            running = getattr(getattr(service, "SparkConnectService$"), "MODULE$").executionManager()
            return bool(running.getExecuteHolder(service.ExecuteKey(*operation)).isEmpty())
        except (Py4JError, TypeError):  # no Connect here, or another one
            return False

    def stopped(self) -> bool:
        """Whether the application is over."""
        return bool(self._context.isStopped())

    def _ended(self, stage: Stage) -> StageProgress:
        """A stage that is not active: over, or not known."""
        from py4j.protocol import Py4JJavaError

        try:
            found = self._store.stageAttempt(*stage, False, self._no_statuses, False, self._no_quantiles)
        except Py4JJavaError:  # NoSuchElementException: not yet in the store, or no longer
            return StageProgress("lost")
        return _progress(json.loads(self._mapper.writeValueAsString(found._1())))


def _stage(data: dict[str, Any]) -> Stage:
    return int(data.get("stageId", 0)), int(data.get("attemptId", 0))


def _progress(data: dict[str, Any]) -> StageProgress:
    """Progress from a record of the status store, in which zeros are left out."""
    states: dict[str, Literal["complete", "failed"]] = {
        "COMPLETE": "complete",
        "SKIPPED": "complete",
        "FAILED": "failed",
    }
    finished = sum(data.get(name, 0) for name in ("numCompleteTasks", "numFailedTasks", "numKilledTasks"))
    spent_ms = data.get("executorRunTime", 0) + data.get("executorDeserializeTime", 0)
    return StageProgress(
        state=states.get(str(data.get("status")), "active"),
        finished_core_s=spent_ms / 1000.0,
        finished_tasks=finished,
        tasks=max(data.get("numTasks", 0), finished),
        running_tasks=data.get("numActiveTasks", 0),
    )
