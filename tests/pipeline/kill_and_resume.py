"""Runs two nights of a small pipeline in forked processes and kills them, for ``test_pipeline_kill.py``.

The second night goes on from the first; a night that is over is not done again.

The process imports everything once and does nothing else, so a child begins where a started program would be
after its imports. Prints what the test compares, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog

from jobs.pipeline.record import read_record, run_name
from jobs.pipeline.run import run
from tests.pipeline.pipelines import deliver, digests, settings_of, small_market

IMPORTED_BEFORE = (
    "jobs.build_graph",
    "jobs.fingerprints",
    "jobs.pipeline.evaluation",
    "jobs.pipeline.reporting",
    "jobs.pipeline.page",
    "jobs.refresh",
    "jobs.report",
    "jobs.train_router",
    "ppr.local",
    "router.bundle_training",
    "router.publishing",
)
ENDS = (datetime(2025, 5, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC))
MADE = ("collect", "graph", "fingerprints", "train")


def child(out: Path, deliveries: dict[str, object]) -> int:
    """Start a pipeline; gives the process."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with (out / "log.txt").open("a") as log:
            structlog.configure(logger_factory=structlog.PrintLoggerFactory(log))
            for until in ENDS:
                if "notify" not in steps_of(out, until):
                    run(settings_of(out, deliveries), until=until)
        code = 0
    finally:
        os._exit(code)


def steps_of(out: Path, until: datetime) -> dict[str, Any]:
    """Steps that the run of a night has on record."""
    steps: dict[str, Any] = read_record(out / "work" / "runs" / run_name(until)).get("steps", {})
    return steps


def whole(out: Path, deliveries: dict[str, object]) -> float:
    """Run a pipeline to its end; gives the seconds that took."""
    started = time.monotonic()
    _, status = os.waitpid(child(out, deliveries), 0)
    if status != 0:
        raise SystemExit((out / "log.txt").read_text())
    return time.monotonic() - started


def content(out: Path) -> dict[str, object]:
    """Everything that has to be equal: outputs of steps, and the stores of the releases."""
    releases = out / "releases"
    current = (releases / "CURRENT").read_text().strip()
    stores = {f"{name}": digests(releases / current / name) for name in ("model", "graph", "fingerprints")}
    left = [str(path.relative_to(out)) for path in out.rglob(".*") if path.name not in (".lock",)]
    return {
        "steps": {step: digests(out / "work" / "steps" / step) for step in MADE},
        "judged": [judged(out, until) for until in ENDS],
        "stores": stores,
        "versions": [path.parent.name.split("-")[1] for path in sorted(releases.glob("*/release.json"))],
        "published": [steps_of(out, until)["publish"]["facts"]["published"] for until in ENDS],
        "fingerprints": [steps_of(out, until)["fingerprints"]["facts"] for until in ENDS],
        "left": sorted(left),
    }


def judged(out: Path, until: datetime) -> dict[str, Any]:
    """What the evaluation of a night found; the name of the current release has the clock in it."""
    key = steps_of(out, until)["evaluate"]["key"]
    found: dict[str, Any] = json.loads((out / "work/steps/evaluate" / key / "evaluation.json").read_text())
    return found | {"current": found["current"] is not None}


def main(folder: Path, kills: int) -> None:
    for name in IMPORTED_BEFORE:
        import_module(name)
    deliveries = deliver(small_market(), folder / "deliveries", ("2025-03-01", "2025-05-01"))
    (folder / "first").mkdir()
    whole(folder / "first", deliveries)  # compiles kernels
    (folder / "whole").mkdir()
    seconds = whole(folder / "whole", deliveries)
    expected = content(folder / "whole")
    rng, wrong, states = random.Random(0), list[object](), list[int]()
    moments = [(number + rng.random()) / (kills // 2) * seconds for number in range(kills // 2)]
    number = 0
    while len(states) < kills:
        out = folder / f"killed-{number}"
        out.mkdir()
        moment = moments[number % len(moments)]
        number += 1
        for after_s in (moment, rng.random() * (seconds - moment)):  # killed, resumed, killed, resumed
            done = killed(out, deliveries, after_s)
            states += [] if done is None else [done]  # it had ended a moment before
        whole(out, deliveries)
        found = content(out)
        if found != expected:
            wrong.append({"run": number, "found": found})
        else:
            shutil.rmtree(out)
    result = {"seconds": seconds, "steps_done": states, "wrong": wrong, "expected": expected}
    print(json.dumps(result))


def killed(out: Path, deliveries: dict[str, object], after_s: float) -> int | None:
    """Kill a pipeline after some time; gives how many steps it had done, None where it had ended before."""
    process = child(out, deliveries)
    time.sleep(after_s)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    n_steps = sum(len(steps_of(out, until)) for until in ENDS)
    return n_steps if os.WIFSIGNALED(status) else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
