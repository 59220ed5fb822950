"""An operator goes back, from another process, while a service of several workers is asked without end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from threading import Event

import pytest

from router.publishing import publish
from router.releases.places import Folder, activate
from tests.service.served import ROOT, serving
from tests.service.synthetic import write_synthetic

TURNS = 2
JSON = {"content-type": "application/json"}
LONGEST_S = 10.0  # a worker looks every half second, and opens what it finds


@pytest.mark.long
def test_a_rollback_under_load(tmp_path: Path) -> None:
    """No request fails, none is answered from anything else, and within seconds all are from the old one."""
    root, now = tmp_path / "releases", datetime(2026, 11, 1, tzinfo=UTC)
    old, new = (
        publish(
            root, model=write_synthetic(tmp_path / f"m{i}", seed=i).path, now=now + timedelta(days=i)
        ).version
        for i in range(2)
    )
    with serving(root, tmp_path / "feedback.db", "--workers", "2") as (_, _, ready):
        stopped, answers = Event(), list[tuple[float, int, str]]()

        def ask() -> None:
            while not stopped.is_set():
                # Not one connection for all: each worker gets its share.
                connection = HTTPConnection(ready["url"].removeprefix("http://"), timeout=30)
                for _ in range(5):
                    asked = time.monotonic()
                    connection.request("POST", "/v1/route", b'{"user": "bob"}', JSON)
                    found = connection.getresponse()
                    content = json.load(found)
                    answers.append((asked, found.status, content.get("release", str(content))))
                    time.sleep(0.005)
                connection.close()

        with ThreadPoolExecutor(4) as pool:
            askers = [pool.submit(ask) for _ in range(4)]
            try:
                for turn in range(TURNS):
                    _wait_for(answers, new)
                    done = subprocess.run(
                        [sys.executable, "-m", "jobs.cli", "releases", "rollback", str(root)],
                        cwd=ROOT,
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    assert done.returncode == 0, done.stderr
                    _wait_for(answers, old)
                    if turn < TURNS - 1:
                        activate(Folder(root), new)
            finally:
                stopped.set()
            for asker in askers:
                asker.result()
    assert Counter(status for _, status, _ in answers) == {200: len(answers)}
    assert {release for _, _, release in answers} == {old, new}
    assert len(answers) > 100


def _wait_for(answers: list[tuple[float, int, str]], version: str) -> None:
    """Wait until whatever is asked is answered from this version, for a second on end."""
    begin = time.monotonic()
    while True:
        now = time.monotonic()
        last = {release for asked, _, release in list(answers) if asked > now - 1.0}
        if now > begin + 1.0 and last == {version}:
            return
        assert now < begin + LONGEST_S, (version, last)
        time.sleep(0.05)
