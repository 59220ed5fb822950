"""What the DAG is made of, for each choice of its settings."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from fairpath_dag_settings import DagConfigError, read
from tests.airflow.conftest import DAGS, ROOT, airflow

pytestmark = pytest.mark.filterwarnings("default")  # Airflow's own are none of ours
STEPS = ["collect", "graph", "fingerprints", "train", "evaluate", "publish", "report", "notify"]
LEAST = {"fairpath": {"program": "/opt/bin/fairpath", "config": ["/etc/a.toml", "/etc/b.toml"]}}
SPARK = {"by": "spark-submit", "launcher": "/opt/fairpath_submit.py"}


@pytest.fixture
def build(airflow_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    for name in ("AIRFLOW_HOME", "AIRFLOW__CORE__LOAD_EXAMPLES", "AIRFLOW_FAIRPATH_CONFIG"):
        monkeypatch.setenv(name, airflow_environment[name])
    module = importlib.import_module("fairpath_daily")
    return lambda **sections: module.build(read({**LEAST, **sections}))


def context_of(**params: Any) -> dict[str, Any]:
    """Context of a run of the night to 2026-02-03."""
    end = datetime(2026, 2, 3, tzinfo=UTC)
    run = SimpleNamespace(data_interval_end=end, run_after=datetime(2026, 2, 3, 1, tzinfo=UTC))
    chosen = {"until": None, "engine": "as configured", "publish": True, "dry_run": False, **params}
    return {"dag_run": run, "params": chosen}


def test_the_steps_are_a_row_between_ready_and_outcome(build: Callable[..., Any]) -> None:
    dag = build()
    row = ["ready", *STEPS]
    assert set(dag.task_ids) == {*row, "outcome"}
    for before, after in zip(row, [*STEPS, "outcome"]):
        assert dag.get_task(before).downstream_task_ids == {after, "outcome"}
    assert dag.get_task("outcome").downstream_task_ids == set()
    rules = {task.task_id: str(task.trigger_rule.value) for task in dag.tasks}
    assert rules == {
        **dict.fromkeys(row, "all_success"),
        "collect": "none_failed",
        "report": "all_done",
        "notify": "all_done",
        "outcome": "none_failed",
    }


def test_retries_timeouts_and_pools_are_those_of_the_settings(build: Callable[..., Any]) -> None:
    dag = build(
        retries={"times": 2, "delay_s": 5, "factor": 3, "longest_delay_s": 50},
        timeouts_s={"graph": 7},
        pools={"spark": "clusters", "gpu": "cards"},
        wait={"every_s": 11, "timeout_s": 12},
    )
    for step in STEPS:
        task = dag.get_task(step)
        assert (task.retries, task.retry_delay) == (2, timedelta(seconds=5))
        assert (task.retry_exponential_backoff, task.max_retry_delay) == (3, timedelta(seconds=50))
    assert dag.get_task("graph").execution_timeout == timedelta(seconds=7)
    assert dag.get_task("train").execution_timeout == timedelta(hours=6)
    pools = {step: dag.get_task(step).pool for step in STEPS}
    assert pools == {**dict.fromkeys(STEPS, "default_pool"), "fingerprints": "clusters", "train": "cards"}
    ready = dag.get_task("ready")
    assert (ready.mode, ready.poke_interval, ready.timeout) == ("reschedule", 11, 12)


def test_intervals_are_days_one_run_at_a_time(build: Callable[..., Any]) -> None:
    dag = build(schedule={"catchup": True, "start": date(2026, 1, 1), "timezone": "Europe/Berlin"})
    assert type(dag.timetable).__name__ == "CronDataIntervalTimetable"
    assert (dag.max_active_runs, dag.catchup) == (1, True)
    assert dag.start_date == datetime(2025, 12, 31, 23, tzinfo=UTC)
    assert build().catchup is False


def test_everything_is_explained(build: Callable[..., Any]) -> None:
    dag = build()
    assert "fairpath releases rollback" in dag.doc_md
    assert all(task.doc_md for task in dag.tasks)
    assert all(dag.params.get_param(name).description for name in ("until", "engine", "publish", "dry_run"))


def test_arguments_are_a_list_that_no_shell_and_no_template_reads(build: Callable[..., Any]) -> None:
    task = build().get_task("graph")
    task.render_template_fields(context_of())
    configs = ["--config", "/etc/a.toml", "--config", "/etc/b.toml"]
    night = ["--until", "2026-02-03T00:00:00Z"]
    assert task.command == ["/opt/bin/fairpath", "pipeline", "graph", *configs, *night]
    task.render_template_fields(context_of(until="2026-01-31T02:00:00+02:00", engine="local", dry_run=True))
    night = ["--until", "2026-01-31T00:00:00Z", "--set", "fingerprints.engine=local", "--dry-run"]
    assert task.command == ["/opt/bin/fairpath", "pipeline", "graph", *configs, *night]


@pytest.mark.parametrize(
    ("zone", "start", "hours"),
    [
        ("Asia/Tokyo", date(2026, 2, 3), 24),
        ("America/New_York", date(2026, 3, 7), 24),
        ("America/New_York", date(2026, 3, 8), 23),
        ("America/New_York", date(2026, 11, 1), 25),
        ("UTC", date(2026, 3, 8), 24),
    ],
)
def test_the_last_day_of_a_run_is_one_of_the_schedule_s_zone(
    build: Callable[..., Any], zone: str, start: date, hours: int
) -> None:
    """What the pipeline waits for is the day that ``--until`` ends, in the zone that it is given in."""
    from airflow.serialization.encoders import coerce_to_core_timetable
    from airflow.timetables.base import TimeRestriction

    dag = build(schedule={"timezone": zone, "start": start})
    restriction = TimeRestriction(earliest=dag.start_date, latest=None, catchup=True)
    timetable = coerce_to_core_timetable(dag.timetable)
    interval = timetable.next_dagrun_info_v2(last_dagrun_info=None, restriction=restriction).data_interval
    assert interval.end - interval.start == timedelta(hours=hours)
    context = context_of()
    context["dag_run"].data_interval_end = interval.end.astimezone(UTC)  # as Airflow's database gives it
    for step in ("ready", "graph"):
        task = dag.get_task(step)
        task.render_template_fields(context)
        until = datetime.fromisoformat(task.command[-1])
        assert until == interval.end
        assert (until - timedelta(microseconds=1)).date() == start
        midnight = datetime(start.year, start.month, start.day, tzinfo=ZoneInfo(zone)) + timedelta(days=1)
        assert until.utcoffset() == midnight.utcoffset()


@pytest.mark.parametrize("cron", ["61 * * * *", "a b c d e", "0 0 31 2 *", "0 0 * * mon#6"])
def test_a_schedule_that_airflow_cannot_run_is_named(build: Callable[..., Any], cron: str) -> None:
    told = rf"\[schedule\] 'cron' must be a schedule that Airflow understands \(got {re.escape(repr(cron))}: "
    with pytest.raises(DagConfigError, match=told):
        build(schedule={"cron": cron})


@pytest.mark.parametrize("typed", ["2026-01-31; rm -rf /", "{{ 7 * 7 }}", "$(id)", "--help"])
def test_what_is_typed_as_a_time_is_one_or_refused(build: Callable[..., Any], typed: str) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match="'until' must be a time such as"):
        build().get_task("graph").render_template_fields(context_of(until=typed))


def test_a_run_without_a_logical_date_ends_when_it_was_triggered(build: Callable[..., Any]) -> None:
    task = build().get_task("graph")
    context = context_of()
    context["dag_run"] = SimpleNamespace(
        data_interval_end=None, run_after=datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    )
    task.render_template_fields(context)
    assert task.command[-2:] == ["--until", "2026-02-03T04:05:06Z"]


def test_fingerprints_by_spark_submit(build: Callable[..., Any]) -> None:
    packages = {"py_files": "/dist/f.zip", "archive": "/dist/e.tar.gz", "properties": "/conf/yarn.conf"}
    task = build(fingerprints={**SPARK, **packages, "connection": "cluster"}).get_task("fingerprints")
    task.render_template_fields({**context_of(), "ti": None}, None)
    assert task.application == "/opt/fairpath_submit.py"
    assert task.application_args[:2] == ["pipeline", "fingerprints"]
    assert task.application_args[-4:] == [
        *("--until", "2026-02-03T00:00:00Z"),
        *("--set", "fingerprints.engine=spark"),
    ]
    hook = task._get_hook()
    hook._connection = {**hook._connection, "master": "yarn"}
    command = hook._build_spark_submit_command(task.application)
    for option, value in {
        "--py-files": "/dist/f.zip",
        "--archives": "/dist/e.tar.gz#environment",
        "--properties-file": "/conf/yarn.conf",
    }.items():
        assert command[command.index(option) + 1] == value
    assert "spark.pyspark.python=environment/bin/python" in command
    assert "spark.pyspark.driver.python=/opt/bin/python" in command
    assert command[command.index("/opt/fairpath_submit.py") + 1 :] == task.application_args


def test_fingerprints_by_the_shared_server(build: Callable[..., Any]) -> None:
    dag = build(fingerprints={"by": "spark-server", "remote": "sc://host:15002/;token=secret"})
    task = dag.get_task("fingerprints")
    task.render_template_fields(context_of())
    assert task.command[-2:] == ["--set", "fingerprints.engine=spark"]
    assert "secret" not in " ".join(task.command)
    assert task.environment["FAIRPATH_SPARK__REMOTE"] == "sc://host:15002/;token=secret"
    assert dag.get_task("train").environment == {}


def test_training_in_a_pod(build: Callable[..., Any]) -> None:
    template = ROOT / "conf" / "airflow" / "training-pod.yaml"
    chosen = {"by": "kubernetes", "pod_template": str(template), "namespace": "lab", "image": "lab/fp:1"}
    task = build(training=chosen, pools={"gpu": "cards"}).get_task("train")
    task.render_template_fields(context_of())
    pod = task.build_pod_request_obj(dry_run=True).to_dict()  # no cluster is asked
    (container,) = pod["spec"]["containers"]
    assert (container["image"], container["command"]) == ("lab/fp:1", ["fairpath"])
    assert container["args"][:2] == ["pipeline", "train"]
    assert container["args"][-2:] == ["--until", "2026-02-03T00:00:00Z"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["metadata"]["namespace"] == "lab"
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["work", "settings"]
    assert task.pool == "cards"


def test_the_pools_of_conf_can_be_imported(airflow_environment: dict[str, str]) -> None:
    pools = ROOT / "conf" / "airflow" / "pools.json"
    subprocess.run([airflow(), "pools", "import", str(pools)], env=airflow_environment, check=True)
    listed = [airflow(), "pools", "list", "--output", "json"]
    done = subprocess.run(listed, env=airflow_environment, capture_output=True, text=True, check=True)
    assert {"default_pool", "spark", "gpu"} == {pool["pool"] for pool in json.loads(done.stdout)}


def test_a_wrong_setting_is_an_import_error_that_names_it(
    airflow_environment: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "dag.toml"
    config.write_text('[fairpath]\nprogram = "fairpath"\nconfig = "/p.toml"\n')
    code = (
        "import json, os; from airflow.dag_processing.dagbag import DagBag;"
        "bag = DagBag(os.environ['PYTHONPATH']);"
        "print('ERRORS', json.dumps([list(bag.import_errors.values()), bag.dag_ids]))"
    )
    for variable, expected in (
        (str(config), f"{config}: [fairpath] 'program' must be an absolute path (got 'fairpath')"),
        ("", "the environment variable AIRFLOW_FAIRPATH_CONFIG must name the DAG's settings file (not set)"),
    ):
        environment = {**airflow_environment, "AIRFLOW_FAIRPATH_CONFIG": variable, "PYTHONPATH": str(DAGS)}
        errors, ids = json.loads(in_airflow(code, environment).partition("ERRORS ")[2])
        assert len(errors) == 1  # modules of the DAG are not taken for DAGs
        assert expected in errors[0]
        assert ids == []


def test_the_command_of_conf_tells_what_is_wrong_with_the_settings(
    airflow_environment: dict[str, str], tmp_path: Path
) -> None:
    """Right after ``db migrate``, when nothing has put the DAG into the database yet."""
    text = (ROOT / "conf" / "airflow" / "fairpath.toml").read_text()
    (command,) = re.findall(r"^#   airflow (dags list-import-errors .*?)  ", text, re.MULTILINE)
    config = tmp_path / "dag.toml"
    environment = {**airflow_environment, "AIRFLOW_FAIRPATH_CONFIG": str(config)}
    for content, code, expected in (
        ('program = "/f"\nconfig = "/p.toml"', 0, "No data found"),
        ('program = "f"\nconfig = "/p.toml"', 1, f"{config}: [fairpath] 'program' must be an absolute path"),
    ):
        config.write_text(f"[fairpath]\n{content}\n")
        called = [airflow(), *command.split()]
        done = subprocess.run(called, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert expected in done.stdout


def in_airflow(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
