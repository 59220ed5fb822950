"""Mixed load while releases are switched, an upstream comes and goes, and workers are killed.

A request fails by itself when it is not answered with success. It is a killed worker's own where its
connection was to that worker and ended, or where it tells of a decision that this worker had made but not yet
written.
Memory is the private memory of the worker that lives through it all, and of each of the others at one age.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from harness import RESULTS, Figure, at_least, at_most, check, note, run_alone
from serve_callers import Tally, call
from serve_load import in_own_process
from serve_process import BESIDE, Served, free_port, private_mib, served
from serve_release import LLMS, publish_random

from router.encoders import MiniLmEncoder
from router.releases import current_version, versions
from router.releases.places import Folder, activate

N_USERS, N_ITEMS = 20_000, 4_000
DURATION_S = 600.0
SWITCHES, KILLS, STOPS = 10, 5, 5  # over the whole duration
FLAT = 0.05
_SAMPLE_S = 1.0
_UPSTREAM = Path(__file__).with_name("serve_upstream.py")


@dataclass
class Seen:
    """What was done to a service, and the memory of its workers: MiB by worker, with the age in seconds."""

    switches: int = 0
    stops: int = 0
    kills: list[tuple[float, int]] = field(default_factory=list)
    memory: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))


def measure(duration_s: float = DURATION_S) -> list[Figure]:
    """Publish two releases and serve them under load."""
    encoder = MiniLmEncoder().identity
    with tempfile.TemporaryDirectory(dir=RESULTS) as name, in_own_process() as client:
        folder = Path(name)
        root, database = folder / "releases", folder / "feedback.db"
        for seed in range(2):
            scratch = folder / f"stores-{seed}"
            scratch.mkdir()
            publish_random(root, scratch, encoder, n_users=N_USERS, n_items=N_ITEMS, seed=seed)
        ports = [free_port(), free_port()]
        config = folder / "serve.toml"
        config.write_text(_config(ports))
        upstreams = [_upstream(port) for port in ports]
        try:
            options = ("--config", str(config))
            with served(root, f"sqlite:///{database}", *options, workers=2, program=BESIDE) as service:
                calling = client.submit(call, service.port, service.token, N_USERS, duration_s)
                seen = _trouble(service, root, upstreams, ports, duration_s, calling)
                tally = calling.result()
        finally:
            for upstream in upstreams:
                upstream.kill()
        print(json.dumps({"answers": tally.answers, "failures": tally.failures}, indent=1), file=sys.stderr)
        return list(_figures(tally, seen, _lost(database, tally.feedback), duration_s))


def _config(ports: list[int]) -> str:
    """Two upstreams, which have every other LLM."""
    parts = []
    for number, port in enumerate(ports):
        models = ", ".join(f'"{name}" = "{name}"' for name in LLMS[number::2])
        parts.append(
            f'[[serve.upstreams]]\nname = "upstream-{number}"\nbase_url = "http://127.0.0.1:{port}/v1"\n'
            f"models = {{ {models} }}\n"
        )
    return "\n".join(parts)


def _upstream(port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, _UPSTREAM, str(port)])


def _trouble(
    service: Served,
    root: Path,
    upstreams: list[subprocess.Popen[bytes]],
    ports: list[int],
    duration_s: float,
    calling: Future[Tally],
) -> Seen:
    """Switch, stop and kill at equal intervals until the callers are done, and watch the memory."""
    seen, begin = Seen(), time.monotonic()
    releases = itertools.cycle(sorted(versions(root), key=lambda version: version == current_version(root)))
    switch_s, stop_s, kill_s = (duration_s / n for n in (SWITCHES + 1, 2 * STOPS + 1, KILLS + 1))
    next_switch, next_stop, next_kill = switch_s, stop_s, kill_s
    while not calling.done():
        now = time.monotonic() - begin
        if now >= next_switch:
            activate(Folder(root), next(releases))
            seen.switches, next_switch = seen.switches + 1, next_switch + switch_s
        if now >= next_stop:  # stopped, and started the next time
            if upstreams[0].poll() is None:
                upstreams[0].kill()
                upstreams[0].wait()
                seen.stops += 1
            else:
                upstreams[0] = _upstream(ports[0])
            next_stop += stop_s
        if now >= next_kill and len(service.workers()) > 1:
            youngest = max(service.workers(), key=lambda worker: worker.create_time())
            youngest.kill()
            seen.kills.append((time.time(), youngest.pid))
            next_kill += kill_s
        _sample(service, seen)
        time.sleep(_SAMPLE_S)
    return seen


def _sample(service: Served, seen: Seen) -> None:
    for worker in service.workers():
        try:
            age_s, mib = time.time() - worker.create_time(), private_mib(worker)
        except (OSError, psutil.Error):
            continue  # it has just ended
        seen.memory[worker.pid].append((age_s, mib))


def _lost(database: Path, accepted: list[str]) -> int:
    """Accepted feedback that is not in the store."""
    connection = sqlite3.connect(database)
    there = {row[0] for row in connection.execute("SELECT feedback_id FROM feedback")}
    connection.close()
    check(len(accepted) > 0, "feedback was accepted")
    return len(set(accepted) - there)


def _figures(tally: Tally, seen: Seen, lost: int, duration_s: float) -> Iterator[Figure]:
    yield note("mixed load over two workers", duration_s, "s")
    yield note("requests answered with success", tally.answers.total())
    yield at_least("switches to another release", seen.switches, SWITCHES)
    yield at_least("upstream stopped and started again", seen.stops, STOPS)
    yield at_least("workers killed", len(seen.kills), KILLS)
    yield note("requests that a killed worker took with it", len(tally.lost) + len(tally.forgotten))
    yield at_most("failed requests that were not a killed worker's own", tally.outside(seen.kills), 0)
    yield note("feedback accepted", len(tally.feedback))
    yield at_most("accepted feedback that is not in the store", lost, 0)
    yield from _memory(seen, duration_s)


def _memory(seen: Seen, duration_s: float) -> Iterator[Figure]:
    """Growth of the worker that lived longest, and spread over the others at the same age."""
    longest = max(seen.memory.values(), key=len)
    middle = [mib for age, mib in longest if 0.3 * duration_s <= age < 0.5 * duration_s]
    end = [mib for age, mib in longest if age >= 0.8 * duration_s]
    yield note("private memory of the worker that lived through it all, at the end", np.median(end), "MiB")
    growth = float(np.median(end) / np.median(middle) - 1.0)
    yield at_most("its growth from 30-50 % of the time to the last 20 %", growth, FLAT)
    window = 0.06 * duration_s, 0.12 * duration_s
    same_age = [
        float(np.median(found))
        for samples in seen.memory.values()
        if len(found := [mib for age, mib in samples if window[0] <= age < window[1]]) > 1
    ]
    spread = max(abs(mib / np.median(same_age) - 1.0) for mib in same_age)
    yield at_most("largest deviation of a worker from the median of all at the same age", spread, FLAT)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=DURATION_S)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    run_alone("serve_soak", lambda: measure(given.seconds))
