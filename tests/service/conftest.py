"""A small release with planted tastes, and the service on it.

Users u00, u02, ... want ``brief``, u01, u03, ... want ``kind`` (see ``tests/choice_files.py``); u99 has items
but made no choices. Queries are encoded by feature hashing, so nothing has to be installed or downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.settings import RouterSettings
from router.publishing import publish
from router.service.app import create_app
from router.service.settings import ServiceSettings
from tests.choice_files import write_files


def local_client(app: FastAPI) -> TestClient:
    """Client of an app as one on its machine sees it."""
    return TestClient(
        app, "http://127.0.0.1:8080", raise_server_exceptions=False, client=("127.0.0.1", 50000)
    )


@pytest.fixture(scope="session")
def release_stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of a release: ``model``, ``graph`` and ``fingerprints``, as ``publish`` takes them."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from jobs.train_router import run as train

    folder = tmp_path_factory.mktemp("stores")
    files = write_files(folder, stores=True, users=True)
    settings = RouterSettings(encoder="hashing", n_steps=60, n_tastes=3, n_factors=3, device="cpu")
    train(files, folder / "model", settings, lines=False)
    assert files.graph is not None
    assert files.fingerprints is not None
    return {"model": folder / "model", "graph": files.graph, "fingerprints": files.fingerprints}


@pytest.fixture(scope="session")
def release_root(tmp_path_factory: pytest.TempPathFactory, release_stores: dict[str, Path]) -> Path:
    """Folder with one release, the current one. To be read only: a test that switches publishes its own."""
    root = tmp_path_factory.mktemp("service") / "releases"
    publish(root, **release_stores)
    return root


@pytest.fixture
def service_settings(release_root: Path, tmp_path: Path) -> ServiceSettings:
    """Settings of a service of that release, with a store of its own."""
    return ServiceSettings(releases=release_root, store=f"sqlite:///{tmp_path / 'feedback.db'}")


@pytest.fixture
def app(service_settings: ServiceSettings) -> FastAPI:
    """The application, not started."""
    return create_app(service_settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """The started application, asked without a socket; its parts are in ``client.app.state.service``."""
    with local_client(app) as asked:
        yield asked


@pytest.fixture
def started(service_settings: ServiceSettings) -> Iterator[Callable[..., TestClient]]:
    """Starts a service with other settings, given by name, and gives its client; all stop after the test."""
    with ExitStack() as stack:

        def start(**changed: Any) -> TestClient:
            settings = ServiceSettings.model_validate(service_settings.model_dump() | changed)
            return stack.enter_context(local_client(create_app(settings)))

        yield start
