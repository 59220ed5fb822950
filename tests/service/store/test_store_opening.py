"""Opening: migrations, several processes at once, and what cannot be opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from router.errors import ParameterError
from router.service import store as store_package
from router.service.store import FeedbackStoreError, open_store
from router.service.store.tables import SCHEMA, metadata

ROOT = Path(__file__).resolve().parents[3]
OPEN = "import sys; from router.service.store import open_store; open_store(sys.argv[1]).close()"


def test_migrations_lead_to_the_tables(store, url):
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_the_schema_named_is_the_last_migration():
    config = Config()
    config.set_main_option("script_location", str(Path(store_package.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA


def test_processes_may_open_a_new_database_at_once(url):
    command = [sys.executable, "-c", OPEN, url]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(3)]
    ends = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] == [0] * 3, ends


def test_contents_outlive_closing(url):
    with open_store(url) as store:
        key, _ = store.create_key("app", ["route"])
    with open_store(url) as store:
        assert store.keys() == [key]


def test_a_newer_schema_is_refused(store, url):
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(
        FeedbackStoreError, match=r"schema must be at most '0002' \(got '9999'\).*newer version"
    ):
        open_store(url)


def test_a_failed_migration_leaves_nothing_behind(url, opened):
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rates (other TEXT)"))  # the last table to be made
    with pytest.raises(FeedbackStoreError, match="rates"):
        open_store(url)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE rates"))
    engine.dispose()
    assert not opened().any_keys()


@pytest.mark.parametrize(
    "wrong", ["feedback.db", "mysql://u:hidden@host/db", "sqlite://", "sqlite:///:memory:"]
)
def test_other_urls_are_refused_without_their_password(wrong):
    with pytest.raises(ParameterError, match="'store' must") as refused:
        open_store(wrong)
    assert "hidden" not in str(refused.value)


def test_the_file_is_for_its_owner_only(tmp_path):
    open_store(f"sqlite:///{tmp_path / 'new' / 'feedback.db'}").close()
    assert (tmp_path / "new" / "feedback.db").stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FeedbackStoreError, match=r"file/feedback\.db: cannot be written"):
        open_store(f"sqlite:///{tmp_path / 'file' / 'feedback.db'}")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "feedback.db").write_bytes(b"not a database " * 1000)
    with pytest.raises(FeedbackStoreError, match=r"feedback\.db: .*not a database"):
        open_store(f"sqlite:///{tmp_path / 'feedback.db'}")


def test_a_server_that_is_not_there_is_named_without_password(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(FeedbackStoreError, match="the feedback store failed") as refused:
        open_store(f"postgresql+psycopg://user:hidden@/db?host={tmp_path}")
    assert "hidden" not in str(refused.value)
