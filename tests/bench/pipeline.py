"""The nightly pipeline on the example market: from nothing, with nothing new, with a small delivery; sizes.

Every run is a command of its own, as a scheduler starts it. The sizing takes a step at a time, so that the
memory of one is not that of another.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from harness import RESULTS, Figure, at_most, check, note, run_alone

from jobs.demo_data import MarketSizes, write_market

FULL_S, NOTHING_NEW_S = 180.0, 10.0
ENDS = ("2025-05-01", "2025-06-01")  # of the data; the market is from January to July
SMALL = timedelta(days=1)
LARGER = MarketSizes(n_users=20_000, n_items=5_000, n_interactions=600_000)
STEPS = ("collect", "graph", "fingerprints", "train", "evaluate", "publish")
_GIB = 2**30


def measure() -> Iterator[Figure]:
    """Run the pipeline on the demo's market, then on a larger one."""
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        yield from _nights(Path(folder), MarketSizes())
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        yield from _sizing(Path(folder), LARGER)


def _nights(folder: Path, sizes: MarketSizes) -> Iterator[Figure]:
    config = _write(folder, sizes)
    first, later = (datetime.fromisoformat(f"{end}T00:00:00+00:00") for end in ENDS)
    full_s, found = _run(config, first)
    check(found["published"], f"not published: {found}")
    yield at_most("from nothing to a published release, the demo's data", full_s, FULL_S, "s")
    again_s, found = _run(config, first)
    states = {step["state"] for step in found["steps"].values()}
    check(states <= {"kept", "skipped"}, f"done again with nothing new: {found['steps']}")
    yield at_most("a second run with nothing new", again_s, NOTHING_NEW_S, "s")
    small_s, found = _run(config, first + SMALL)
    check(found["steps"]["train"]["state"] == "done", "a small delivery was not trained on")
    yield note("a day's delivery, share of a full run's time", small_s / full_s)
    yield note("a day's delivery", small_s, "s")
    month_s, _ = _run(config, later)
    yield note("a month's delivery, share of a full run's time", month_s / full_s)


def _sizing(folder: Path, sizes: MarketSizes) -> Iterator[Figure]:
    config = _write(folder, sizes)
    until = datetime.fromisoformat(f"{ENDS[1]}T00:00:00+00:00")
    for step in ("ready", *STEPS):
        _run(config, until, step)
    _run(config, until, "report")
    report = json.loads(next((folder / "work" / "runs").glob("*/report.json")).read_text())
    rows = {
        name: report["description"][name]
        for name in ("interactions", "choices")
        if report["description"].get(name)
    }
    for name, about in rows.items():
        yield note(f"larger market: {name}", about["rows"] / 1e6, "million rows")
    for step in report["steps"]:
        if step["step"] in STEPS:
            yield note(f"larger market, {step['step']}: time", step["seconds"], "s")
            yield note(f"larger market, {step['step']}: most memory", step["peak_bytes"] / _GIB, "GiB")
            if step["bytes"]:
                yield note(f"larger market, {step['step']}: on disk", step["bytes"] / _GIB, "GiB")


def _write(folder: Path, sizes: MarketSizes) -> Path:
    """Write a market and the settings of its pipeline."""
    market = write_market(folder / "market", 0, sizes)
    lines = [
        "[pipeline]",
        f'work = "{folder / "work"}"',
        f'releases = "{folder / "releases"}"',
        f'interactions = ["{market / "interactions.parquet"}"]',
        f'choices = ["{market / "llm_choices.parquet"}"]',
        f'llms = "{market / "llms.parquet"}"',
        "[fingerprints]",
        "restart_prob = 0.3",
    ]
    config = folder / "pipeline.toml"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


def _run(config: Path, until: datetime, *steps: str) -> tuple[float, dict[str, Any]]:
    """Run steps of the pipeline, all of them by default; seconds, and what it printed."""
    command = [
        sys.executable,
        "-m",
        "jobs.cli",
        "pipeline",
        *steps,
        "--config",
        config,
        "--until",
        until.isoformat(),
    ]
    begin = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    check(ended.returncode == 0, ended.stderr)
    return seconds, json.loads(ended.stdout)


if __name__ == "__main__":
    run_alone("pipeline", lambda: list(measure()))
