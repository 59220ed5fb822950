"""``fairpath serve`` as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST_START_S = 60.0


@contextmanager
def serving(
    root: Path, store: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client, Any]]:
    """A running service: its process, a client, and the line that says it is ready."""
    command = [sys.executable, "-m", "jobs.cli", "serve", str(root), "--port", "0", "--log-format", "json"]
    command += ["--store", f"sqlite:///{store}", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FAIRPATH_")}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        ready = _ready(process)
        with httpx.Client(base_url=ready["url"], timeout=30) as client:
            yield process, client, ready
    finally:
        process.kill()  # workers end when they see that
        process.communicate(timeout=LONGEST_START_S)


def _ready(process: subprocess.Popen[str]) -> Any:
    assert process.stderr is not None
    give_up_s = time.monotonic() + LONGEST_START_S
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("{") and json.loads(line)["event"] == "ready":
            return json.loads(line)
        assert time.monotonic() < give_up_s, lines
    raise AssertionError("".join(lines))
