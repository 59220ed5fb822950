"""The DAG's settings file: what it may say, and what it is told otherwise. Needs no Airflow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

import fairpath_dag_settings as dag_settings
from fairpath_dag_settings import DagConfigError, in_zone, load, read

ROOT = Path(__file__).resolve().parents[2]
LEAST = {"fairpath": {"program": "/opt/bin/fairpath", "config": "/etc/fairpath/pipeline.toml"}}


def test_the_least_that_must_be_said() -> None:
    settings = read(LEAST)
    assert settings.fairpath.config == ("/etc/fairpath/pipeline.toml",)
    assert settings.fairpath.directory == "/etc/fairpath"
    assert (settings.schedule.cron, settings.schedule.catchup) == ("0 0 * * *", False)
    assert settings.wait.when_missing == "continue"
    assert (settings.fingerprints.by, settings.training.by) == ("command", "command")
    assert set(settings.timeouts_s) == set(dag_settings.STEPS)


def test_the_example_of_conf_is_read_also_where_its_comments_are_taken() -> None:
    path = ROOT / "conf" / "airflow" / "fairpath.toml"
    load({"AIRFLOW_FAIRPATH_CONFIG": str(path)})
    text = path.read_text()
    content = tomllib.loads(text)
    taken = []
    for section, body in re.findall(r"^\[(\w+)\](.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL):
        for commented in re.findall(r"(?:^# \w+ = .*\n)+", body, re.MULTILINE):
            more = tomllib.loads(re.sub("^# ", "", commented, flags=re.MULTILINE))
            read({**content, section: {**content[section], **more}})
            taken += more.items()
    assert [value for name, value in taken if name == "by"] == ["spark-server", "spark-submit", "kubernetes"]
    assert {"directory", "environment", "archive", "properties", "pod_template"} < {name for name, _ in taken}


def test_what_is_given_is_taken() -> None:
    settings = read(
        {
            **LEAST,
            "schedule": {"start": date(2026, 3, 1), "timezone": "Europe/Berlin", "catchup": True},
            "wait": {"every_s": 1, "when_missing": "fail"},
            "timeouts_s": {"train": 60},
        }
    )
    assert settings.schedule.start == date(2026, 3, 1)
    assert (settings.wait.every_s, settings.wait.timeout_s) == (1, 6 * 3600)
    assert settings.timeouts_s["train"] == 60
    assert settings.timeouts_s["graph"] == 3600


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"fairpath": {"config": "/p"}}, r"\[fairpath\] 'program' is missing"),
        ({"fairpath": "no"}, r"\[fairpath\] must be a table \(got 'no'\)"),
        (
            {"fairpath": {"program": "fairpath", "config": "/p"}},
            r"\[fairpath\] 'program' must be an absolute path \(got 'fairpath'\)",
        ),
        ({"fairpath": {"program": "/f", "config": []}}, r"'config' must name at least one file \(got \[\]\)"),
        ({"fairpath": {"program": "/f", "config": [1]}}, r"'config' must be a text or a list of texts"),
        (
            {"fairpath": {"program": "/f", "config": "/p", "environment": {"A": 1}}},
            r"'A' must be a text \(got 1\)",
        ),
        *(
            (
                {"fairpath": {"program": "/f", "config": "/p", "environment": {name: "1"}}},
                r"\[fairpath\] \[environment\] must name variables by letters, digits and underscores, no "
                rf"digit first \(got {re.escape(repr(name))}\)",
            )
            for name in ("A=B", "", "1A", "A B", "A\0", "A\n")
        ),
        (
            {"fairpath": {"program": "/f", "config": "/p", "environment": {"A": "1\0"}}},
            r"\[fairpath\] \[environment\] 'A' must hold no null character \(got '1\\x00'\)",
        ),
        (
            {"fairpath": {"program": "/f", "config": ["/p", "/q\0"]}},
            r"\[fairpath\] 'config' must hold no null character",
        ),
        ({"wat": {}}, r"\[wat\] is not known \(there are: fairpath, schedule, "),
        (
            {"wait": {"evry_s": 1}},
            r"\[wait\] 'evry_s' is not known \(there are: every_s, timeout_s, when_missing",
        ),
        (
            {"wait": {"every_s": 0}},
            r"\[wait\] 'every_s' must be positive and at most 31536000 seconds, a year \(got 0\)",
        ),
        *(
            ({section: {key: value}}, rf"\[{section}\] '{key}' must be positive and at most 31536000 seconds")
            for section, key in (
                ("wait", "every_s"),
                ("wait", "timeout_s"),
                ("retries", "delay_s"),
                ("retries", "longest_delay_s"),
                ("timeouts_s", "train"),
            )
            for value in (float("nan"), float("inf"), 1e300, -1, 10**400)
        ),
        ({"wait": {"every_s": True}}, r"\[wait\] 'every_s' must be a number \(got True\)"),
        (
            {"wait": {"when_missing": "x"}},
            r"\[wait\] 'when_missing' must be one of continue, fail \(got 'x'\)",
        ),
        ({"retries": {"times": -1}}, r"\[retries\] 'times' must be from 0 to 1000 \(got -1\)"),
        ({"retries": {"times": 10**30}}, r"\[retries\] 'times' must be from 0 to 1000"),
        ({"retries": {"times": 1.5}}, r"\[retries\] 'times' must be a whole number \(got 1.5\)"),
        *(
            ({"retries": {"factor": value}}, rf"\[retries\] 'factor' must be from 1 to 100 \(got {told}\)")
            for value, told in (
                (0.5, "0.5"),
                (float("nan"), "nan"),
                (float("inf"), "inf"),
                (1e300, r"1e\+300"),
            )
        ),
        (
            {"schedule": {"cron": "daily"}},
            r"\[schedule\] 'cron' must have five or six fields \(got 'daily'\)",
        ),
        (
            {"schedule": {"timezone": "Mars"}},
            r"\[schedule\] 'timezone' must be a time zone's name \(got 'Mars'\)",
        ),
        ({"schedule": {"start": "2026-01-01"}}, r"\[schedule\] 'start' must be a date \(got '2026-01-01'\)"),
        ({"schedule": {"start": datetime(2026, 1, 1)}}, r"\[schedule\] 'start' must be a date"),
        ({"schedule": {"catchup": True}}, r"\[schedule\] 'start' must be given where 'catchup' is true"),
        ({"pools": {"gpu": ""}}, r"\[pools\] 'gpu' must name a pool \(got ''\)"),
        ({"timeouts_s": {"trian": 1}}, r"\[timeouts_s\] has a step 'trian' \(there are: collect, "),
        ({"timeouts_s": {"train": 0}}, r"\[timeouts_s\] 'train' must be positive and at most"),
        ({"fingerprints": {"by": "dask"}}, r"'by' must be one of command, spark-submit, spark-server"),
        ({"fingerprints": {"by": "spark-submit"}}, r"\[fingerprints\] 'launcher' must be an absolute path"),
        (
            {"fingerprints": {"by": "spark-submit", "launcher": "/l.py", "archive": "e.tar.gz"}},
            r"\[fingerprints\] 'archive' must be an absolute path \(got 'e.tar.gz'\)",
        ),
        (
            {"fingerprints": {"by": "spark-server", "remote": "http://x"}},
            r"'remote' must be a Spark Connect URL, sc://host:port \(got 'http://x'\)",
        ),
        (
            {"training": {"by": "kubernetes"}},
            r"\[training\] 'pod_template' must be an absolute path \(got ''\)",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_its_rule_and_value(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(DagConfigError, match=message):
        read({**LEAST, **sections})


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DagConfigError, match=r"AIRFLOW_FAIRPATH_CONFIG must name the DAG's settings file \(not set\)"
    ):
        load({})
    path = tmp_path / "dag.toml"
    named = {"AIRFLOW_FAIRPATH_CONFIG": str(path)}
    with pytest.raises(DagConfigError, match=rf"{path}, named by AIRFLOW_FAIRPATH_CONFIG: cannot be read"):
        load(named)
    path.write_text("[fairpath\n")
    with pytest.raises(DagConfigError, match=rf"{path}: is not TOML"):
        load(named)
    path.write_bytes(b"\xff")
    with pytest.raises(DagConfigError, match=rf"{path}: is not TOML"):
        load(named)
    path.write_text("[fairpath]\n")
    with pytest.raises(DagConfigError, match=rf"{path}: \[fairpath\] 'program' is missing"):
        load(named)


@pytest.mark.parametrize(
    ("given", "zone", "told"),
    [
        ("2026-01-31", "UTC", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T02:00:00+02:00", "UTC", "2026-01-31T00:00:00+00:00"),
        ("2026-01-30T15:00:00Z", "Asia/Tokyo", "2026-01-31T00:00:00+09:00"),
        ("2026-03-08T05:00:00Z", "America/New_York", "2026-03-08T00:00:00-05:00"),
        ("2026-03-09T04:00:00Z", "America/New_York", "2026-03-09T00:00:00-04:00"),
        ("2026-11-01T04:00:00Z", "America/New_York", "2026-11-01T00:00:00-04:00"),
        ("2026-11-01T05:30:00Z", "America/New_York", "2026-11-01T01:30:00-04:00"),
        ("2026-11-01T06:30:00Z", "America/New_York", "2026-11-01T01:30:00-05:00"),  # that hour comes twice
        ("2026-11-02T05:00:00Z", "America/New_York", "2026-11-02T00:00:00-05:00"),
    ],
)
def test_times_are_told_as_clocks_of_the_zone_show_them(given: str, zone: str, told: str) -> None:
    assert in_zone(given, zone).isoformat() == told


@pytest.mark.parametrize("given", ["yesterday", "0001-01-01T00:00:00Z", "2026-02-30"])
def test_what_is_no_time_is_refused(given: str) -> None:
    with pytest.raises(DagConfigError, match="'until' must be a time such as 2026-01-31T00:00:00Z"):
        in_zone(given, "America/New_York")


def test_the_module_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, json; before = set(sys.modules); import fairpath_dag_settings;"
        "print(json.dumps([m for m in set(sys.modules) - before"
        " if m.partition('.')[0] not in sys.stdlib_module_names and m[0] != '_']))"
    )
    folder = Path(dag_settings.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["fairpath_dag_settings"]
