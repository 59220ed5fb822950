"""Parsing the DAG is quick and imports nothing heavy: Airflow does it again and again."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.conftest import DAGS, toml

LIMIT_S = 0.5
HEAVY = ["torch", "numba", "pyspark", "numpy", "pandas", "pyarrow", "scipy", "ppr", "router", "jobs"]
SPARK_OPERATOR = "airflow.providers.apache.spark.operators.spark_submit"
POD_OPERATOR = "airflow.providers.cncf.kubernetes.operators.pod"
LEAST = {"fairpath": {"program": "/nowhere/fairpath", "config": "/nowhere/pipeline.toml"}}
SPARK = {"fingerprints": {"by": "spark-submit", "launcher": "/nowhere/fairpath_submit.py"}}
POD = {"training": {"by": "kubernetes", "pod_template": "/nowhere/pod.yaml"}}
PARSE = """
import importlib, json, sys, time
sys.path.insert(0, {folder!r})
import airflow.dag_processing.dagbag
from airflow.sdk import DAG, BaseOperator, BaseSensorOperator, CronDataIntervalTimetable, Param
for provider in {providers!r}:
    importlib.import_module(provider)
started = time.perf_counter()
import fairpath_daily
seconds = time.perf_counter() - started
print("PARSED", json.dumps([seconds, [name for name in {heavy!r} if name in sys.modules]]))
"""


def parse(
    environment: dict[str, str], folder: Path, sections: dict[str, Any], *providers: str
) -> tuple[float, list[str]]:
    """Seconds that the DAG's file took in a fresh process, and what was imported that costs."""
    config = folder / "dag.toml"
    config.write_text(toml({**LEAST, **sections}))
    code = PARSE.format(folder=str(DAGS), providers=providers, heavy=[*HEAVY, SPARK_OPERATOR, POD_OPERATOR])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "AIRFLOW_FAIRPATH_CONFIG": str(config)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seconds, heavy = json.loads(done.stdout.partition("PARSED ")[2])
    return seconds, heavy


def test_parsing_takes_little_beyond_importing_airflow(
    airflow_environment: dict[str, str], tmp_path: Path
) -> None:
    taken, imported = zip(*(parse(airflow_environment, tmp_path, {}) for _ in range(3)))
    assert statistics.median(taken) <= LIMIT_S, taken
    assert set(map(tuple, imported)) == {()}


@pytest.mark.parametrize(
    ("sections", "provider"),
    [(SPARK, SPARK_OPERATOR), (POD, POD_OPERATOR)],
    ids=["spark-submit", "kubernetes"],
)
def test_a_provider_is_all_that_a_choice_imports(
    airflow_environment: dict[str, str], tmp_path: Path, sections: dict[str, Any], provider: str
) -> None:
    seconds, imported = parse(airflow_environment, tmp_path, sections, provider)
    assert imported == [provider]
    assert seconds <= 4 * LIMIT_S  # measured once only
