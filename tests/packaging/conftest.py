from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this working tree."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("fairpath-*.whl")
    return built


@pytest.fixture(scope="session")
def dependencies_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Virtual environment that sees this one's packages, but not this project: no second copy of them all."""
    return make_venv(tmp_path_factory.mktemp("venvs") / "dependencies")


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Virtual environment in which the wheel is installed."""
    home = make_venv(tmp_path_factory.mktemp("venvs") / "installed")
    pip("--python", str(home / "bin" / "python"), "install", "--no-index", str(wheel))
    return home


def make_venv(home: Path) -> Path:
    venv.create(home, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    # Lines of an added folder's own .pth files are not followed, so an editable install stays unseen.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home


def pip(command: str, *arguments: str) -> None:
    program = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*program, command, *arguments, "--no-deps"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
