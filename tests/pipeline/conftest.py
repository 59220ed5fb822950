"""Pipelines that ran, once for all tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.pipeline.run import run
from tests.pipeline.pipelines import JUNE, MAY, deliver, settings_of, small_market


@pytest.fixture(scope="session")
def deliveries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return deliver(small_market(), tmp_path_factory.mktemp("deliveries"), ("2025-03-01", "2025-05-01"))


@pytest.fixture(scope="session")
def in_order(tmp_path_factory: pytest.TempPathFactory, deliveries: dict[str, Any]) -> Path:
    """A pipeline that ran for May and then for June."""
    out = tmp_path_factory.mktemp("pipeline")
    for until in (MAY, JUNE):
        run(settings_of(out, deliveries), until=until)
    return out


@pytest.fixture
def out(in_order: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(in_order, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="session")
def items_only(tmp_path_factory: pytest.TempPathFactory, deliveries: dict[str, Any]) -> dict[str, Any]:
    """Deliveries without choices: nothing to train, so runs are quick."""
    return {"interactions": deliveries["interactions"]}
