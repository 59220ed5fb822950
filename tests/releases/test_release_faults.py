"""Killed at any point and resumed; several at work at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest

from router import releases
from router.errors import ReleaseError
from router.publishing import publish
from router.releases.places import Folder
from router.releases.pruning import PruneRule, prune
from tests.releases.conftest import NOON

ROOT = Path(__file__).resolve().parent.parent.parent
POINTS = 20


@pytest.mark.parametrize("what", ["push", "pull", "prune", "prune-store"])
def test_killed_and_resumed(tmp_path, release_parts, what):
    root = tmp_path / "root"
    for number in range(3):
        publish(root, model=release_parts[f"m{number}"], now=NOON + timedelta(days=number))
    script = Path(__file__).with_name("killed.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), what, str(tmp_path / "scratch"), str(root), str(POINTS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    n_touched, n_killed = map(int, run.stdout.split())
    assert n_touched > n_killed == POINTS


def test_two_pruners_and_a_publisher_at_once(tmp_path, release_parts):
    """What a reader sees as current is whole, each publish ends well, and in the end the newest serves."""
    root, model, done = tmp_path / "releases", release_parts["m0"], Event()
    publish(root, model=model, feedback_until=NOON, now=NOON)

    def make() -> list[str]:
        moments = [NOON + timedelta(seconds=i % 7, days=i // 7) for i in range(1, 29)]
        try:
            # Every content three times: an older release of it may be pruned while it is published again.
            return [
                publish(root, model=model, feedback_until=at - timedelta(days=at.day // 3), now=at).version
                for at in moments
            ]
        finally:
            done.set()

    def make_room() -> int:
        removed = 0
        while not done.is_set():
            removed += len(prune(Folder(root), PruneRule(keep=1))["removed"])
        return removed

    def read() -> int:
        seen = 0
        while not done.is_set():
            version = releases.current_version(root)
            assert version is not None
            try:
                releases.open_release(root, version, verify=True)
            except ReleaseError:
                assert releases.current_version(root) != version  # it was switched and pruned since
            seen += 1
        return seen

    with ThreadPoolExecutor(4) as pool:
        makers = pool.submit(make)
        pruners = [pool.submit(make_room) for _ in range(2)]
        reader = pool.submit(read)
        made = makers.result()
        assert sum(pruner.result() for pruner in pruners) > 5
        assert reader.result() > 5
    assert releases.current_version(root) == made[-1]
    prune(Folder(root), PruneRule(keep=1))
    assert made[-1] in releases.versions(root)
    assert not [path for path in root.iterdir() if path.name.startswith(".") and path.name != ".lock"]
