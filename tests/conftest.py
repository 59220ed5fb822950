"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.command_line import Result

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parent.parent

# The same examples each time, and no failure only because the machine is busy.
settings.register_profile(
    "fairpath", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fairpath")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets that lie beside the repository; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not there ({folder})")
    return folder


@pytest.fixture(scope="module")
def quick_disk() -> Iterator[None]:
    """Do not wait for the disk where many stores are written: none has to outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture
def plain_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings in the environment, and logging as it was afterwards."""
    for name in [name for name in os.environ if name.startswith(("FAIRPATH_", "SPARK_CONNECT_"))]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def fairpath(capsys: pytest.CaptureFixture[str], plain_surroundings: None) -> Callable[..., Result]:
    """The program, called with arguments; gives its exit code and output."""
    from jobs.cli import main

    def run(*args: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One lazy local session for the whole run."""
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    from jobs.spark_session import spark_session

    scratch = tmp_path_factory.mktemp("spark")
    session = spark_session(
        master="local[2]",
        app_name="fairpath-tests",
        conf={
            "spark.sql.shuffle.partitions": "3",  # the default, 200, spends the time on empty tasks
            "spark.local.dir": str(scratch / "local"),
            "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        },
    )
    yield session
    session.stop()
