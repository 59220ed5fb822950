"""The nightly pipeline on the example market: from nothing, with nothing new, with a small delivery; sizes.

And on Gowalla, up to training: a night with three new items each for one in a hundred users goes on from the
night before, and is timed against the same night made in full.

Every run is a command of its own, as a scheduler starts it. The sizing takes a step at a time, so that the
memory of one is not that of another.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import gowalla
from harness import RESULTS, Figure, at_most, check, note, run_alone
from numpy.typing import ArrayLike

from jobs.demo_data import MarketSizes, write_market
from jobs.pipeline.record import read_record, run_name

FULL_S, NOTHING_NEW_S = 180.0, 10.0
ENDS = ("2025-05-01", "2025-06-01")  # of the data; the market is from January to July
SMALL = timedelta(days=1)
LARGER = MarketSizes(n_users=20_000, n_items=5_000, n_interactions=600_000)
STEPS = ("collect", "graph", "fingerprints", "train", "evaluate", "publish")
BEFORE_TRAINING = STEPS[:3]
NIGHT_SHARE = 0.25  # of a full run's time, up to training
GOWALLA_END = datetime(2025, 5, 1, tzinfo=UTC)
_GIB = 2**30


def measure() -> Iterator[Figure]:
    """Run the pipeline on the demo's market, on Gowalla, then on a larger market."""
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        yield from _nights(Path(folder), MarketSizes())
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        yield from _refreshed(Path(folder))
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        yield from _sizing(Path(folder), LARGER)


def _nights(folder: Path, sizes: MarketSizes) -> Iterator[Figure]:
    config = _write(folder, sizes)
    first, later = (datetime.fromisoformat(f"{end}T00:00:00+00:00") for end in ENDS)
    full_s, full = _run(config, first)
    check(full["published"], f"not published: {full}")
    yield at_most("from nothing to a published release, the demo's data", full_s, FULL_S, "s")
    again_s, found = _run(config, first)
    states = {found["steps"][step]["state"] for step in STEPS}
    check(states == {"kept"}, f"done again with nothing new: {found['steps']}")
    yield at_most("a second run with nothing new", again_s, NOTHING_NEW_S, "s")
    small_s, found = _run(config, first + SMALL)
    check(found["steps"]["train"]["state"] == "done", "a small delivery was not trained on")
    yield note("a day's delivery, share of a full run's time", small_s / full_s)
    yield note("a day's delivery", small_s, "s")
    yield note("the same up to training", _before_training(found) / _before_training(full))
    month_s, _ = _run(config, later)
    yield note("a month's delivery, share of a full run's time", month_s / full_s)


def _refreshed(folder: Path) -> Iterator[Figure]:
    """A night on Gowalla that goes on from the one before, and the same night made in full."""
    _deliver_gowalla(folder / "in")
    night = GOWALLA_END + timedelta(days=1)
    places = {name: _configure(folder, name, tolerance) for name, tolerance in (("on", 0.05), ("full", 0.0))}
    steps = ("ready", *BEFORE_TRAINING)
    _run(places["on"], GOWALLA_END, *steps)
    begin_s = _children_s()
    night_s, _ = _run(places["on"], night, *steps)
    night_cpu_s = _children_s() - begin_s
    full_s, _ = _run(places["full"], night, *steps)
    full_cpu_s = _children_s() - begin_s - night_cpu_s
    record = read_record(folder / "on" / "runs" / run_name(night))["steps"]
    made = record["fingerprints"]["facts"]
    check(made["base"] == run_name(GOWALLA_END), f"did not go on from the night before: {made}")
    check(0 < made["recomputed"] < made["sources"], f"nothing was refreshed: {made}")
    yield at_most(
        "a night on Gowalla up to training, share of a full run's time", night_s / full_s, NIGHT_SHARE
    )
    yield note("the same, CPU time", night_cpu_s / full_cpu_s)
    yield note("the same in full", full_s, "s")
    for step in BEFORE_TRAINING:
        yield note(f"a night on Gowalla, {step}", record[step]["seconds"], "s")
    yield note("rows computed anew", made["recomputed"] / made["sources"])
    yield note("largest bound left", made["largest_bound"])
    yield note("mean bound left", made["mean_bound"])


def _children_s() -> float:
    """CPU time of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _deliver_gowalla(folder: Path) -> None:
    """Write all interactions as one delivery, and as another three new ones each for 1 % of the users."""
    train, _ = gowalla()
    users, items = train.nonzero()
    rng = np.random.default_rng(0)
    chosen = rng.choice(train.shape[0], round(0.01 * train.shape[0]), replace=False)
    new = [
        rng.choice(np.setdiff1d(np.arange(train.shape[1]), items[users == u]), 3, replace=False)
        for u in chosen
    ]
    first = GOWALLA_END.timestamp() - 100 * 86_400
    times = first + rng.integers(0, 100 * 86_400, size=len(users))
    folder.mkdir()
    _deliver(folder / "0.parquet", users, items, times)
    added = np.repeat(chosen, 3), np.concatenate(new)
    _deliver(
        folder / "1.parquet", *added, GOWALLA_END.timestamp() + rng.integers(0, 86_400, size=3 * len(chosen))
    )


def _deliver(path: Path, users: ArrayLike, items: ArrayLike, times: ArrayLike) -> None:
    columns = {
        name: np.char.add(name[0], np.asarray(ids).astype(str))
        for name, ids in (("user", users), ("item", items))
    }
    at = pa.array(np.asarray(times).astype(np.int64) * 1000).cast(pa.timestamp("ms", "UTC"))
    pq.write_table(pa.table({**columns, "timestamp": at}), path)


def _configure(folder: Path, name: str, tolerance: float) -> Path:
    path = folder / f"{name}.toml"
    lines = [
        "[pipeline]",
        f'work = "{folder / name}"',
        f'releases = "{folder / "releases"}"',
        f'interactions = ["{folder / "in"}"]',
        "[refresh]",
        f"tolerance = {tolerance}",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _before_training(found: dict[str, Any]) -> float:
    return float(sum(found["steps"][step]["seconds"] for step in BEFORE_TRAINING))


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
