"""Runs of the DAG in Airflow, with a program that records its calls and fails as it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.airflow.conftest import DAGS, Fairpath, toml

STEPS = ["collect", "graph", "fingerprints", "train", "evaluate", "publish", "report", "notify"]
# One Airflow for all runs, as starting one takes seconds; its log and the program's come out line by line.
RUN = """
import json, os, sys
from datetime import datetime
from pathlib import Path
from fairpath_dag_settings import load
os.environ["AIRFLOW_FAIRPATH_CONFIG"] = sys.argv[1]
from fairpath_daily import build
for line in sys.stdin:
    day, conf, config = json.loads(line)
    os.environ["AIRFLOW_FAIRPATH_CONFIG"] = config
    run = build(load()).test(logical_date=day and datetime.fromisoformat(day), run_conf=conf)
    tasks = {
        ti.task_id: [ti.state, ti.try_number, ti.xcom_pull(ti.task_id)] for ti in run.get_task_instances()
    }
    print("RAN", json.dumps([run.state, tasks]), flush=True)
"""


class Ran(NamedTuple):
    """How a run ended: its state, and state, tries and result of each task."""

    state: str
    tasks: dict[str, tuple[str | None, int, Any]]
    log: str

    def states(self) -> dict[str, str | None]:
        return {name: told[0] for name, told in self.tasks.items()}


@pytest.fixture(scope="session")
def scheduler(airflow_environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, airflow_environment["AIRFLOW_FAIRPATH_CONFIG"]],
        env={**airflow_environment, "PYTHONPATH": str(DAGS), "FAIRPATH_SECRET": "kept"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def run(
    scheduler: subprocess.Popen[str], settings_of: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[..., Ran]:
    config = tmp_path / "dag.toml"

    def one(day: str | None, conf: dict[str, Any] | None = None, **sections: Any) -> Ran:
        config.write_text(toml(settings_of(**sections)))
        assert scheduler.stdin is not None
        assert scheduler.stdout is not None
        print(json.dumps([day, conf or {}, str(config)]), file=scheduler.stdin, flush=True)
        log: list[str] = []
        for line in scheduler.stdout:
            if line.startswith("RAN "):
                state, tasks = json.loads(line.removeprefix("RAN "))
                return Ran(state, {name: tuple(told) for name, told in tasks.items()}, "".join(log))
            log.append(line)
        raise AssertionError("".join(log)[-5000:])

    return one


def test_a_night(run: Callable[..., Ran], fake: Fairpath) -> None:
    ran = run("2026-02-03T00:00:00+00:00")
    assert ran.state == "success"
    assert set(ran.states().values()) == {"success"}
    calls = fake.calls()
    assert [call["step"] for call in calls] == ["ready", *STEPS]
    for call in calls:
        named = ["--config", str(fake.folder / "pipeline.toml"), "--until", "2026-02-03T00:00:00Z"]
        assert call["arguments"] == ["pipeline", call["step"], *named]
        assert call["cwd"] == str(fake.folder)
        assert not [name for name in call["env"] if name.startswith("AIRFLOW_")]
        assert call["env"]["FAIRPATH_SECRET"] == "kept"
    assert ran.tasks["train"] == ("success", 1, {"step": "train"})
    assert "log of train" in ran.log


def test_deliveries_that_come_late_and_a_step_that_fails_for_a_while(
    run: Callable[..., Ran], fake: Fairpath
) -> None:
    fake.plan({"ready": [75, 75], "train": [3, 75, 1]})
    ran = run("2026-02-04T00:00:00+00:00")
    assert ran.state == "success"
    assert fake.steps() == ["ready"] * 3 + STEPS[:3] + ["train"] * 4 + STEPS[4:]
    assert ran.tasks["train"][:2] == ("success", 4)
    assert "train: exit code 3 (data or resources): fairpath: train went wrong" in ran.log


def test_a_step_that_keeps_failing_is_reported_and_makes_the_run_fail(
    run: Callable[..., Ran], fake: Fairpath
) -> None:
    fake.plan({"graph": [3, 3, 3]})
    ran = run("2026-02-05T00:00:00+00:00", retries={"times": 1, "delay_s": 0.1})
    assert ran.state == "failed"
    assert fake.steps() == ["ready", "collect", "graph", "graph", "report", "notify"]
    after = ["fingerprints", "train", "evaluate", "publish", "outcome"]
    assert ran.states() == {
        **dict.fromkeys(["ready", "collect", "report", "notify"], "success"),
        "graph": "failed",
        **dict.fromkeys(after, "upstream_failed"),
    }


@pytest.mark.parametrize("step", ["ready", "collect"])
def test_a_configuration_error_is_not_tried_again(run: Callable[..., Ran], fake: Fairpath, step: str) -> None:
    fake.plan({step: [2]})
    ran = run("2026-02-06T00:00:00+00:00")
    assert ran.state == "failed"
    assert fake.steps().count(step) == 1
    assert ran.states()[step] == "failed"
    assert fake.steps()[-2:] == ["report", "notify"]


def test_deliveries_that_stay_away(run: Callable[..., Ran], fake: Fairpath) -> None:
    fake.plan({"ready": [75] * 50})
    ran = run("2026-02-07T00:00:00+00:00", wait={"every_s": 0.1, "timeout_s": 0.5})
    assert ran.state == "success"
    assert ran.states() == {**dict.fromkeys([*STEPS, "outcome"], "success"), "ready": "skipped"}
    assert "deliveries are missing: this run goes on with what is there" in ran.log
    fake.plan({"ready": [75] * 50})
    ran = run("2026-02-07T00:00:00+00:00", wait={"every_s": 0.1, "timeout_s": 0.5, "when_missing": "fail"})
    assert ran.state == "failed"
    assert (ran.states()["ready"], ran.states()["collect"]) == ("failed", "upstream_failed")
    assert fake.steps()[-2:] == ["report", "notify"]


def test_parameters_of_a_run(run: Callable[..., Ran], fake: Fairpath) -> None:
    conf = {"until": "2026-01-15T12:00:00+01:00", "engine": "local", "publish": False, "dry_run": True}
    ran = run("2026-02-08T00:00:00+00:00", conf)
    assert ran.state == "success"
    assert ran.states()["publish"] == "skipped"
    assert fake.steps() == ["ready", *(step for step in STEPS if step != "publish")]
    more = ["--until", "2026-01-15T11:00:00Z", "--set", "fingerprints.engine=local", "--dry-run"]
    assert all(call["arguments"][-5:] == more for call in fake.calls())


def test_a_run_without_a_logical_date_has_one_end_for_all_steps(
    run: Callable[..., Ran], fake: Fairpath
) -> None:
    assert run(None).state == "success"
    (end,) = {call["arguments"][-1] for call in fake.calls()}
    assert abs(time.time() - time.mktime(time.strptime(end, "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 120


def test_a_step_over_its_time_is_stopped_with_its_children_and_tried_again(
    run: Callable[..., Ran], fake: Fairpath
) -> None:
    fake.plan({"graph": ["hang"]})
    ran = run("2026-02-09T00:00:00+00:00", timeouts_s={"graph": 2})
    assert ran.state == "success"
    assert ran.tasks["graph"][:2] == ("success", 2)
    child = int((fake.folder / "child").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_program_that_is_not_there_is_said_at_once(run: Callable[..., Ran], tmp_path: Path) -> None:
    lost = {"program": "/nowhere/fairpath", "config": str(tmp_path / "pipeline.toml")}
    ran = run("2026-02-10T00:00:00+00:00", fairpath=lost)
    assert ran.state == "failed"
    assert ran.tasks["ready"][:2] == ("failed", 1)
    assert "/nowhere/fairpath does not start ([Errno 2] No such file or directory" in ran.log
