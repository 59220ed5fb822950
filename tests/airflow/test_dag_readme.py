"""The README's way from the demo to a green DAG and a service that answers from its release, literally."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.airflow.conftest import HAS_AIRFLOW, ROOT

SMALL = ["--engine", "local", "--users", "400", "--items", "150", "--n-interactions", "9000"]
MADE = ("demo", "build", "dist", ".git")  # by the commands


def block_after(text: str) -> list[str]:
    """Lines of the first block of the README after some words of it."""
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(text)
    found = re.search(r"```\n(.*?)\n```", rest, re.DOTALL)
    assert found is not None, text
    return found[1].splitlines()


@pytest.mark.skipif(not HAS_AIRFLOW, reason="needs Airflow: make test-airflow")
def test_from_the_demo_to_a_service_that_answers_from_the_dag_s_release(tmp_path: Path) -> None:
    for path in ROOT.iterdir():
        if path.name not in MADE:
            (tmp_path / path.name).symlink_to(path)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "FAIRPATH_"))}
    environment = {**variables, "OMP_NUM_THREADS": "1"}

    def bash(script: str) -> None:
        command = ["bash", "-euo", "pipefail", "-c", script]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-6000:]

    night = next(line for line in block_after("### Every night") if line.startswith("$ make demo"))
    demo, _, pipeline = night.removeprefix("$ ").partition(" && ")
    assert demo == "make demo"
    bash(f'make --silent demo ARGS="{" ".join(SMALL)}" && {pipeline}')
    root = tmp_path / "demo" / "releases"
    before = (root / "CURRENT").read_text()
    *commands, serve = block_after("The same steps as an Airflow DAG")
    assert serve.split("#")[0].split() == [".venv/bin/fairpath", "serve", "demo/releases"]
    bash("\n".join(commands))
    current = (root / "CURRENT").read_text().strip()
    assert current > before.strip()

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*serve.split("#")[0].split(), "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as service:
        try:
            answer = route(f"http://127.0.0.1:{port}/v1/route", service)
        finally:
            service.terminate()
    assert answer["release"] == current
    assert answer["based_on"]["source"] == "trained"


def route(url: str, service: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The service's answer to a question, once it is ready."""
    body = json.dumps({"user": "user-0001", "query": "Write a short review of my new skipping rope."})
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    give_up_s = time.monotonic() + 60
    while service.poll() is None and time.monotonic() < give_up_s:
        with suppress(OSError), urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
        time.sleep(0.2)
    raise AssertionError("the service does not answer")
