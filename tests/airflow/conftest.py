"""An Airflow for the tests: a home and a SQLite database of its own, set before airflow is imported."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DAGS = ROOT / "jobs" / "dags"
sys.path.insert(0, str(DAGS))  # as Airflow does with its folder of DAGs
HAS_AIRFLOW = importlib.util.find_spec("airflow") is not None
# They need Airflow, which has an environment of its own: make test-airflow.
collect_ignore = (
    [] if HAS_AIRFLOW else ["test_dag.py", "test_dag_nights.py", "test_dag_parse.py", "test_dag_runs.py"]
)

FAKE = '''\
#!{python}
"""Stands in for fairpath: records how it was called, and ends as the test says."""
import json, os, subprocess, sys, time
from pathlib import Path

here = Path(__file__).parent
step = sys.argv[2]
call = {{"step": step, "arguments": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
with open(here / "calls", "a") as file:
    print(json.dumps(call), file=file)
plan = json.loads((here / "plan.json").read_text())
code = plan.get(step, []).pop(0) if plan.get(step) else 0
(here / "plan.json").write_text(json.dumps(plan))
print("log of", step, file=sys.stderr)
if code == "hang":
    child = subprocess.Popen(["sleep", "120"])
    (here / "child").write_text(str(child.pid))
    time.sleep(120)
if code:
    print(f"fairpath: {{step}} went wrong", file=sys.stderr)
else:
    print(json.dumps({{"step": step}}, indent=2))
sys.exit(code)
'''


def toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The sections as TOML; JSON's texts, numbers, booleans and lists are TOML's."""
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def airflow_environment() -> Iterator[dict[str, str]]:
    """Environment of a fresh Airflow with a migrated database; also this process's own."""
    home = Path(tempfile.mkdtemp(prefix="fairpath-airflow-"))
    config = home / "fairpath.toml"
    config.write_text(
        toml({"fairpath": {"program": "/nowhere/fairpath", "config": "/nowhere/pipeline.toml"}})
    )
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "FAIRPATH_"))
    }
    environment = {
        **kept,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
        "AIRFLOW_FAIRPATH_CONFIG": str(config),
    }
    subprocess.run([airflow(), "db", "migrate"], env=environment, capture_output=True, check=True)
    yield environment
    shutil.rmtree(home)


def airflow() -> str:
    """The program ``airflow`` of this environment."""
    return str(Path(sys.executable).with_name("airflow"))


class Fairpath:
    """A fake ``fairpath`` in a folder of its own.

    Attributes
    ----------
    program
        Its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "fairpath"
        self.program.write_text(FAKE.format(python=sys.executable))
        self.program.chmod(0o755)
        self.plan({})

    def plan(self, codes: Mapping[str, Sequence[int | str]]) -> None:
        """Exit codes of a step's next calls; 0 after those, and for the others."""
        (self.folder / "plan.json").write_text(json.dumps(codes))
        (self.folder / "calls").write_text("")

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def steps(self) -> list[str]:
        return [call["step"] for call in self.calls()]


@pytest.fixture
def fake(tmp_path: Path) -> Fairpath:
    return Fairpath(tmp_path)


@pytest.fixture
def settings_of(fake: Fairpath) -> Callable[..., dict[str, Any]]:
    """Content of a settings file for the fake: quick retries; sections given replace."""

    def make(**sections: Any) -> dict[str, Any]:
        config = str(fake.folder / "pipeline.toml")
        quick = {"delay_s": 0.1, "factor": 1.0}
        basis = {"fairpath": {"program": str(fake.program), "config": config}, "retries": quick}
        return {**basis, "wait": {"every_s": 0.1}, **sections}

    return make
