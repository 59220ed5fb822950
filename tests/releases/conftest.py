"""Small models with random weights, a graph, and releases of them a day apart."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest

from router.publishing import publish
from router.releases import Release
from tests.choice_files import fingerprints_of, user_graph
from tests.service.synthetic import write_synthetic

GIVEN_STORE = "TEST_OBJECT_STORE"
"""Variable that names a further object store to test with, such as s3://bucket/tests."""
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
Publish = Callable[..., Release]


@pytest.fixture(autouse=True)
def nothing_reaches_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of flushes would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def release_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models ``m0`` to ``m3``, ever more users, and the ``graph`` and ``fingerprints`` they belong to."""
    folder = tmp_path_factory.mktemp("parts")
    graph = user_graph().save(folder / "graph")
    fingerprints_of(graph, folder / "fingerprints")
    for seed in range(4):
        write_synthetic(
            folder / f"m{seed}",
            users=[f"u{i:02d}" for i in range(20 + seed)],
            items=[f"item-{i}" for i in range(12)],
            parents={"graph": graph.checksum},
            seed=seed,
        )
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Folder of the releases that are sent."""
    return tmp_path / "here"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Folder that gets them."""
    return tmp_path / "copy"


@pytest.fixture
def published(release_parts: dict[str, Path]) -> Publish:
    """Publishes model ``number`` with graph and fingerprints as of a day in November."""

    def make(root: Path, number: int, *, day: int | None = None, **options: Any) -> Release:
        now = NOON + timedelta(days=number if day is None else day)
        stores = {name: release_parts[name] for name in ("graph", "fingerprints")}
        return publish(root, model=release_parts[f"m{number}"], **stores, now=now, **options)

    return make


@pytest.fixture(params=["memory", "file", *(["given"] if GIVEN_STORE in os.environ else [])])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty object store."""
    if request.param == "file":
        yield f"file://{tmp_path / 'store'}"
        return
    if request.param == "given":
        yield f"{os.environ[GIVEN_STORE]}/{secrets.token_hex(8)}"
        return
    yield f"memory://{tmp_path.name}"
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]


def tree(folder: Path) -> dict[str, bytes]:
    """Content of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
