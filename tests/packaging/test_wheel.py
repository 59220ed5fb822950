"""The wheel in an environment of its own: what a user installs, used from a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.packaging


def run(command: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=folder, env=clean_environment(**environment), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def clean_environment(**more: str) -> dict[str, str]:
    kept = {
        name: os.environ[name]
        for name in ("HOME", "JAVA_HOME", "LANG", "NUMBA_CACHE_DIR")
        if name in os.environ
    }
    return {"PATH": "/usr/bin:/bin", **kept, **more}


def test_wheel_holds_the_packages_and_their_data_only(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("ppr", "router", "jobs")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert "jobs/log4j2.properties" in names


def test_packages_are_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import json, ppr, router, jobs.cli, sys;"
        "print(json.dumps([[m.__file__ for m in (ppr, router, jobs)],"
        " sorted({'pyspark', 'torch', 'matplotlib', 'dask'} & sys.modules.keys())]))"
    )
    files, heavy = json.loads(run([installed / "bin" / "python", "-c", code], tmp_path).stdout)
    assert all(file.startswith(str(installed)) for file in files)
    assert heavy == []  # the command line starts without what only some commands need


def test_console_script(installed: Path, tmp_path: Path) -> None:
    done = run([installed / "bin" / "fairpath", "--help"], tmp_path)
    assert "fingerprints" in done.stdout
    assert done.stderr == ""


@pytest.mark.long
@pytest.mark.spark
def test_demo_runs_from_the_wheel_in_another_folder(installed: Path, tmp_path: Path) -> None:
    command = [installed / "bin" / "fairpath", "demo", "--master", "local[2]", "--out", "result"]
    size = ["--users", "120", "--items", "80", "--n-interactions", "2500"]
    run([*command, *size], tmp_path)
    assert (tmp_path / "result" / "report.html").stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
