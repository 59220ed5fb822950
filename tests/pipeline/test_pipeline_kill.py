"""A pipeline that is killed at any moment, and resumed, makes what an undisturbed one makes, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

KILLS = 20


@pytest.mark.long
def test_kill_and_resume(tmp_path: Path) -> None:
    script = ROOT / "tests" / "pipeline" / "kill_and_resume.py"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FAIRPATH_")},
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(KILLS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["wrong"] == []
    assert all(len(made) > 5 for made in found["expected"]["steps"].values())
    full, refreshed = found["expected"]["fingerprints"]
    assert (full["base"], refreshed["base"]) == (None, "20250501T000000Z")
    assert 0 < refreshed["recomputed"] < refreshed["sources"]
    assert found["expected"]["left"] == []
    assert len(found["steps_done"]) >= KILLS
    assert len(set(found["steps_done"])) >= 4  # kills came in different steps
