"""Nights of the real thing: Airflow runs the real steps on the example market, and releases come of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.conftest import ROOT, airflow, toml

BIN = ROOT / ".venv" / "bin"
# Writes the market's rows between two times, below a folder, as the deliveries of a day.
DELIVER = """
import sys
from datetime import datetime, UTC
from pathlib import Path
import pyarrow.compute as pc, pyarrow.parquet as pq
from jobs.demo_data import MarketSizes, make_market
folder, first, last, day = sys.argv[1:]
sizes = MarketSizes(n_users=150, n_items=90, n_interactions=4000, n_choices=1500)
market = make_market(3, sizes)
start, end = (datetime.fromisoformat(time).replace(tzinfo=UTC) for time in (first, last))
for name, table in (("interactions", market.interactions), ("choices", market.llm_choices)):
    time = table["timestamp"]
    rows = table.filter(pc.and_(pc.greater_equal(time, start), pc.less(time, end)))
    out = Path(folder, name, f"{day}.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, out.with_name(f".{out.name}"))
    out.with_name(f".{out.name}").rename(out)
pq.write_table(market.llms, Path(folder, "llms.parquet"))
"""
FINGERPRINTS = {"restart_prob": 0.3, "n_walks": 300, "threads": 1}
ROUTER = {"encoder": "hashing", "n_factors": 4, "n_tastes": 4, "n_steps": 30, "device": "cpu"}
# What is judged here is the DAG: so few users would say little about a model.
GATE = {"min_users": 2, "popularity_floor": False, "accuracy_tolerance": 1.0, "log_likelihood_tolerance": 9.0}
GATE |= {"ndcg_tolerance": 1.0, "recall_tolerance": 1.0}


@pytest.fixture
def lab(tmp_path: Path, airflow_environment: dict[str, str]) -> Callable[..., Any]:
    """A pipeline in a folder, and Airflow that runs it."""
    return Lab(tmp_path, airflow_environment)


class Lab:
    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        kinds = {kind: [f"deliveries/{kind}"] for kind in ("interactions", "choices")}
        waits = [f"deliveries/{kind}/{{date}}.parquet" for kind in kinds]
        places = {"work": "work", "releases": "releases", "llms": "deliveries/llms.parquet"}
        self.pipeline = {
            "pipeline": {**kinds, **places, "wait_for": waits},
            "fingerprints": FINGERPRINTS,
            "router": ROUTER,
            "gate": GATE,
        }
        self.configure()
        config = folder / "dag.toml"
        program = {"program": str(BIN / "fairpath"), "config": str(folder / "pipeline.toml")}
        retries = {"delay_s": 0.1, "times": 1}
        config.write_text(toml({"fairpath": program, "wait": {"every_s": 1}, "retries": retries}))
        self.environment = {**environment, "AIRFLOW_FAIRPATH_CONFIG": str(config), "OMP_NUM_THREADS": "1"}

    def configure(self, **gate: Any) -> None:
        sections = {**self.pipeline, "gate": {**GATE, **gate}}
        (self.folder / "pipeline.toml").write_text(toml(sections))

    def deliver(self, first: str, last: str, day: str) -> None:
        places = [str(self.folder / "deliveries"), first, last, day]
        subprocess.run([BIN / "python", "-c", DELIVER, *places], cwd=ROOT, check=True)

    def night(
        self, date: str, *, meanwhile: tuple[str, Callable[[], None]] | None = None, green: bool = True
    ) -> str:
        """One run for a date; once its log says so, something is done meanwhile. Gives the log."""
        command = [airflow(), "dags", "test", "fairpath_daily", date]
        log = ""
        with subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                log += line
                if meanwhile is not None and meanwhile[0] in line:
                    meanwhile[1]()
                    meanwhile = None
        assert (process.returncode == 0) is green, log[-8000:]
        assert meanwhile is None
        return log

    def releases(self) -> list[str]:
        return sorted(path.parent.name for path in (self.folder / "releases").glob("*/release.json"))

    def current(self) -> str:
        return (self.folder / "releases" / "CURRENT").read_text().strip()

    def report(self, run: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((self.folder / "work" / "runs" / run / "report.json").read_text())
        return told


def test_each_night_s_new_data_become_a_release(lab: Lab) -> None:
    lab.deliver("2025-01-01", "2025-06-01", "2025-05-31")
    lab.night("2025-06-01")
    (first,) = lab.releases()
    assert lab.current() == first

    # The next night's delivery comes while its run waits.
    late = ("2025-06-01", "2025-06-02", "2025-06-01")
    lab.night("2025-06-02", meanwhile=("not delivered yet", lambda: lab.deliver(*late)))
    before, second = lab.releases()
    assert before == first < second
    assert lab.current() == second
    for run, release in (("20250601T000000Z", first), ("20250602T000000Z", second)):
        assert release in json.dumps(lab.report(run))
    # The first night is made in full, the second goes on from it.
    bases = [lab.report(run)["fingerprints"]["base"] for run in ("20250601T000000Z", "20250602T000000Z")]
    assert bases == [None, "20250601T000000Z"]

    # Again, with nothing new: nothing is published.
    lab.night("2025-06-02")
    assert lab.releases() == [first, second]
    assert lab.current() == second

    # A candidate that the gate refuses: the run is green, the release stays.
    lab.deliver("2025-06-02", "2025-06-03", "2025-06-02")
    lab.configure(ndcg_floor=1.0)
    log = lab.night("2025-06-03")
    assert '"published": false' in log
    assert lab.releases() == [first, second]
    assert lab.current() == second

    # A broken delivery: the run is red, its report says why, the release stays.
    lab.configure()
    lab.deliver("2025-06-03", "2025-06-04", "2025-06-03")
    (lab.folder / "deliveries" / "interactions" / "2025-06-03.parquet").write_text("not Parquet")
    lab.night("2025-06-04", green=False)
    assert "2025-06-03.parquet" in json.dumps(lab.report("20250604T000000Z"))
    assert lab.releases() == [first, second]
    assert lab.current() == second
