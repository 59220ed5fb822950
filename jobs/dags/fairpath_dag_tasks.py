"""Tasks of the DAG: the pipeline's steps as commands of Fairpath's own environment.

No shell takes part: a command is a list of arguments, and what a person types into the trigger form is
checked before it becomes one. Exit codes are those of :mod:`jobs.errors`: 2 (usage or configuration) is not
tried again, 75 (not yet) is, and so is all else, since each step is idempotent and resumes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from airflow.sdk import BaseOperator, BaseSensorOperator, Context
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from fairpath_dag_settings import DagConfigError, DagSettings, ProgramSettings, in_zone

AS_CONFIGURED = "as configured"
CONFIGURATION, NOT_YET = 2, 75
_MEANING = {1: "a defect", 2: "usage or configuration", 3: "data or resources", NOT_YET: "not yet"}
_STOP_S = 20  # between asking a process to stop and ending it


def until(settings: DagSettings, context: Mapping[str, Any]) -> str:
    """End of the run's data, the same in every try: as asked for, else that of its data interval.

    It is told in the schedule's time zone, whose day the pipeline puts for ``{date}`` in ``wait_for``. A run
    triggered without a logical date has no data interval: its data end at the second of the trigger.
    """
    run = context["dag_run"]
    asked = context["params"].get("until")
    end = asked or (run.data_interval_end or run.run_after.replace(microsecond=0)).isoformat()
    try:
        return in_zone(end, settings.schedule.timezone).isoformat().replace("+00:00", "Z")
    except DagConfigError as error:
        raise AirflowFailException(str(error)) from None


def arguments(settings: DagSettings, step: str, context: Mapping[str, Any]) -> list[str]:
    """Arguments of ``fairpath`` for a step of this run."""
    given = ["pipeline", step]
    for path in settings.fairpath.config:
        given += ["--config", path]
    given += ["--until", until(settings, context)]
    engine = context["params"].get("engine", AS_CONFIGURED)
    if engine == AS_CONFIGURED and settings.fingerprints.by != "command":
        engine = "spark"
    if engine != AS_CONFIGURED:
        given += ["--set", f"fingerprints.engine={engine}"]
    if context["params"].get("dry_run"):
        given.append("--dry-run")
    return given


class Done(NamedTuple):
    """What a command left: its exit code, what it printed, and the last line of its log."""

    code: int
    out: str
    last: str


class Program:
    """The program, run and stopped.

    Parameters
    ----------
    settings
        Where it is, and where it runs.
    log
        Gets its log, line by line.
    """

    def __init__(self, settings: ProgramSettings, log: Any) -> None:
        self._settings = settings
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> Done:
        """Run a command to its end.

        Raises
        ------
        AirflowFailException
            The program or its folder is not there.
        """
        self._log.info("running %s", " ".join(command))
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as out:
            try:
                self._process = process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    errors="backslashreplace",
                    cwd=self._settings.directory,
                    env={**_inherited(), **self._settings.environment, **environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise AirflowFailException(f"{command[0]} does not start ({error})") from error
            assert process.stderr is not None
            last = ""
            try:
                for line in process.stderr:
                    self._log.info("%s", line.rstrip())
                    last = line.strip() or last
                code = process.wait()
            except BaseException:  # the exception of a time limit is none of Exception
                self.stop()
                raise
            finally:
                process.stderr.close()
            out.seek(0)
            printed = out.read()
        self._log.info("%s", printed)
        return Done(code, printed, last)

    def stop(self) -> None:
        """Stop the program and what it started; a step resumes at its next try."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
                return


class PipelineStep(BaseOperator):
    """A step of the pipeline; its result, JSON, is the task's.

    Parameters
    ----------
    step
        Name of the step.
    settings
        Settings of the DAG.
    environment
        Variables for this step alone.
    **kwargs
        What every operator takes.
    """

    template_fields: Sequence[str] = ("command",)

    def __init__(
        self, *, step: str, settings: DagSettings, environment: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.step = step
        self.settings = settings
        self.environment = dict(environment or {})
        self.command: list[str] = []
        self._program: Program | None = None

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Make this run's command, which Airflow's page shows; no template is expanded in it."""
        self.command = [self.settings.fairpath.program, *arguments(self.settings, self.step, context)]

    def execute(self, context: Context) -> Any:
        if self.step == "publish" and not context["params"].get("publish", True):
            raise AirflowSkipException("the parameter 'publish' of this run says no")
        self._program = Program(self.settings.fairpath, self.log)
        done = self._program.run(self.command, self.environment)
        if done.code:
            raise failure(self.step, done)
        try:
            return json.loads(done.out)
        except ValueError:
            return done.out

    def on_kill(self) -> None:
        if self._program is not None:
            self._program.stop()


class DeliveriesSensor(BaseSensorOperator):
    """Waits for the deliveries of the interval, by the pipeline's ``ready``; its slot is free meanwhile.

    Parameters
    ----------
    settings
        Settings of the DAG.
    **kwargs
        What every sensor takes.
    """

    template_fields: Sequence[str] = ("command",)

    def __init__(self, *, settings: DagSettings, **kwargs: Any) -> None:
        wait = settings.wait
        super().__init__(mode="reschedule", poke_interval=wait.every_s, timeout=wait.timeout_s, **kwargs)
        self.settings = settings
        self.command: list[str] = []
        self._program: Program | None = None

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Make this run's command, which Airflow's page shows; no template is expanded in it."""
        self.command = [self.settings.fairpath.program, *arguments(self.settings, "ready", context)]

    def poke(self, context: Context) -> bool:
        self._program = Program(self.settings.fairpath, self.log)
        done = self._program.run(self.command, {})
        if done.code not in (0, NOT_YET):
            raise failure("ready", done)
        return done.code == 0

    def execute(self, context: Context) -> Any:
        try:
            return super().execute(context)
        except AirflowSensorTimeout:
            if self.settings.wait.when_missing == "fail":
                raise
            message = "deliveries are missing: this run goes on with what is there"
            self.log.warning(message)
            raise AirflowSkipException(message) from None

    def on_kill(self) -> None:
        if self._program is not None:
            self._program.stop()


def failure(step: str, done: Done) -> AirflowException:
    """What a failed command becomes: tried again, unless nothing will change by that."""
    kind = AirflowFailException if done.code == CONFIGURATION else AirflowException
    meaning = "ended by a signal" if done.code < 0 else _MEANING.get(done.code, "unknown")
    return kind(f"{step}: exit code {done.code} ({meaning}): {done.last}")


def _inherited() -> dict[str, str]:
    """The worker's environment without Airflow's settings, which hold secrets, and without its Python's."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW_", "_AIRFLOW_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
