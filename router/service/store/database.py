"""The database behind the store: SQLite or PostgreSQL, with one set of transactions for both.

=========  ==============================================  ==============================================
           SQLite                                          PostgreSQL
=========  ==============================================  ==============================================
read       WAL: readers and the writer do not wait for     statements on their own
           each other
write      ``BEGIN IMMEDIATE``: no transaction fails       row locks, always in the same order
           because it became a writer too late
durable    ``synchronous=FULL``: flushed to the disk       ``synchronous_commit=on``
           before the commit returns
quick      ``synchronous=NORMAL``: outlives the process;   ``synchronous_commit=off``: outlives the
           a power failure takes what came after the       process; a crash of the server takes the last
           last durable commit                             moments
=========  ==============================================  ==============================================

Whoever waits for another writer gives up after a while, with :class:`StoreBusyError` and nothing written: in
time to tell a caller who is still there.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from router.errors import MissingDataError, ParameterError
from router.service.store.errors import FeedbackStoreError, StoreBusyError
from router.service.store.tables import SCHEMA

_MIGRATIONS = Path(__file__).parent / "migrations"
_DRIVERS = ("sqlite", "postgresql+psycopg")
LONGEST_WAIT_S = 5.0
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code
_SWEEP_WAIT_MS = 100
_MOST_CONNECTIONS = 10  # of a process; its other threads wait for one
# Any two numbers that other applications of the same PostgreSQL database do not use.
OPENING_LOCK, FEEDBACK_LOCK, ERASURE_LOCK = 0x66706F70, 0x66706662, 0x66706572


class Database:
    """Connections and transactions of one database whose schema is current.

    Safe to share between threads, not between processes: each opens its own.

    Parameters
    ----------
    url
        ``sqlite:///path`` or ``postgresql+psycopg://user:password@host/database``.
    wait_s
        Longest wait for the threads of this process that write, and again for other processes.

    Raises
    ------
    ParameterError
        The URL is of another kind.
    MissingDataError
        PostgreSQL's driver is not installed.
    FeedbackStoreError
        The database cannot be opened or written, or its schema is of a newer version.
    """

    def __init__(self, url: str, wait_s: float = LONGEST_WAIT_S) -> None:
        parsed = _parsed(url)
        self.name = parsed.render_as_string(hide_password=True)
        self.wait_s = wait_s
        self._path = Path(parsed.database or "") if parsed.drivername == "sqlite" else None
        self._engine = (_sqlite_engine if self._path else _postgresql_engine)(parsed, wait_s)
        # SQLite has one writer at a time: threads of this process wait here, in turn, not by polling.
        self._turn = Lock() if self._path else None
        modes = ("read", "snapshot", "quick", "durable")
        self._engines = {mode: self._engine.execution_options(transaction=mode) for mode in modes}
        if self._path is None:
            self._engines["read"] = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self._engine, "begin", _begin_sqlite if self._path else _begin_postgresql)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """Connection for reading; with ``snapshot`` all statements see the same state."""
        with self._clear_errors(), self._engines["snapshot" if snapshot else "read"].connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, durable: bool) -> Iterator[Connection]:
        """Transaction that is committed when the block ends well, and flushed to the disk if ``durable``."""
        engine = self._engines["durable" if durable else "quick"]
        with self._clear_errors(), self._in_turn(), engine.begin() as connection:
            yield connection

    def sweep(self) -> bool:
        """Let nothing deleted remain in SQLite's log; False where somebody who reads or writes is in the way.

        PostgreSQL's vacuum does the like in its time.
        """
        if self._path is None:
            return True
        with self._clear_errors(), self._engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {_SWEEP_WAIT_MS}")
            try:
                is_busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar_one()
            finally:
                connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1e3 * self.wait_s)}")
        return not is_busy

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def busy(self) -> StoreBusyError:
        """Error of whoever has waited for too long."""
        return StoreBusyError(f"{self.name}: others have been writing for more than {self.wait_s:g} s")

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=self.wait_s):
            raise self.busy()
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Errors of the database without statements and parameters: those may be personal data."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if _is_busy(cause):
                raise self.busy() from cause
            # PostgreSQL's text goes on with a DETAIL, which names values.
            primary = getattr(getattr(cause, "diag", None), "message_primary", None)
            reason = " ".join(str(primary or cause).split())
            raise FeedbackStoreError(f"{self.name}: the feedback store failed ({reason})") from cause

    def _open(self) -> None:
        """Bring the schema up to date; several processes may do so at once."""
        with self._alone():
            if self._path is None:
                with self._engines["durable"].begin() as connection:
                    connection.execute(text("SET LOCAL lock_timeout = 0"))  # another may be migrating
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": OPENING_LOCK})
                    self._migrate(connection)
                return
            with self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            with self._engines["durable"].begin() as connection:
                self._migrate(connection)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Errors made clear and, for SQLite, a file that nobody else may read and one process at a time."""
        with self._clear_errors():
            if self._path is None:
                yield
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
            except OSError as error:
                raise FeedbackStoreError(f"{self._path}: cannot be written ({error.strerror})") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Only where there is none: closing a file that SQLite has open would drop SQLite's own locks.
                if not self._path.exists():
                    os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                yield
            finally:
                os.close(descriptor)

    def _migrate(self, connection: Connection) -> None:
        there = _schema(connection)
        if there == SCHEMA:
            return
        from alembic import command  # takes a moment, and is seldom needed
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if there is not None and there not in known:
            raise FeedbackStoreError(
                f"{self.name}: the schema must be at most {SCHEMA!r} (got {there!r}): "
                "it was written by a newer version of Fairpath"
            )
        command.upgrade(config, "head")


def insert(connection: Connection, table: Table) -> Any:
    """An insertion with ``on_conflict_do_...``, which both databases have in the same form."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.drivername not in _DRIVERS:
        got = "no URL" if parsed is None else parsed.render_as_string(hide_password=True)
        raise ParameterError(f"'store' must be sqlite:///PATH or postgresql+psycopg://... (got {got!r})")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise ParameterError(f"'store' must name a file, which all workers share (got {url!r})")
    if parsed.drivername != "sqlite" and find_spec("psycopg") is None:
        raise MissingDataError("a store in PostgreSQL needs the package psycopg")
    return parsed


def _sqlite_engine(url: URL, wait_s: float) -> Engine:
    engine = create_engine(
        url,
        pool_size=_MOST_CONNECTIONS,
        max_overflow=0,
        pool_timeout=wait_s,
        connect_args={"timeout": wait_s},
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten

    return engine


def _postgresql_engine(url: URL, wait_s: float) -> Engine:
    engine = create_engine(
        url, pool_size=_MOST_CONNECTIONS, max_overflow=0, pool_timeout=wait_s, pool_pre_ping=True
    )

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _: Any) -> None:
        connection.execute(f"SET lock_timeout = {round(1e3 * wait_s)}")
        connection.commit()

    return engine


def _is_busy(cause: BaseException | None) -> bool:
    if isinstance(cause, sqlite3.OperationalError):
        return cause.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    return isinstance(cause, PoolTimeout) or getattr(cause, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("transaction", "read")
    if mode in ("quick", "durable"):
        wanted = "FULL" if mode == "durable" else "NORMAL"
        if connection.info.get("synchronous") != wanted:  # each statement hands Python's lock to and fro
            connection.exec_driver_sql(f"PRAGMA synchronous = {wanted}")
            connection.info["synchronous"] = wanted
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif mode == "snapshot":
        connection.exec_driver_sql("BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    mode = connection.get_execution_options().get("transaction", "read")
    if mode == "snapshot":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    elif mode == "quick":
        connection.exec_driver_sql("SET LOCAL synchronous_commit = off")


def _schema(connection: Connection) -> str | None:
    """Revision of the schema that is there, or None."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found
