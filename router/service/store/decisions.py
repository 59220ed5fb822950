"""Decisions: written in batches by one thread, so that a request does not wait for the database."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
import structlog
from sqlalchemy import Connection, Row, bindparam, select

from router.erasure import Erasure
from router.persona.data import Floats
from router.service.store import erasures
from router.service.store.checks import check_name, check_number, is_storable
from router.service.store.database import Database, insert
from router.service.store.errors import FeedbackStoreError, StoreBusyError
from router.service.store.records import DecisionRecord
from router.service.store.tables import decisions

_BATCH_WAIT_S = 0.05
_LARGEST_BATCH = 500
_STATEMENT_ROWS = (1, 4, 16, 64)
_COLUMNS = tuple(column.name for column in decisions.columns)
_LONGEST_RETRY_S = 5.0
_CAPACITY = 20_000
_NAMES = ("user", "release", "llm", "source", "task", "query_hash", "key_id", "session_id")
_SAME = tuple(c.name for c in decisions.columns if c.name in DecisionRecord.__slots__)
_same_of = attrgetter(*_SAME)
_FIND = select(decisions).where(decisions.c.decision_id == bindparam("decision_id"))

log = structlog.get_logger()


def find(connection: Connection, decision_id: str) -> DecisionRecord | None:
    """The decision, or None."""
    row = connection.execute(_FIND, {"decision_id": decision_id}).first()
    if row is None or erasures.covered(connection, row.user_key, row.created_at):  # is yet to be deleted
        return None
    return _record(row)


def write(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Write decisions, except those that are there already, or of users who were erased since.

    In a transaction that lets no user be erased until it ends. SQLite gets many rows in one statement: its
    driver hands Python's lock to and fro at each, which costs the thread that answers requests more than the
    writing does.
    """
    if there := erasures.among(connection, {row["user_key"] for row in rows} - {None}):
        rows = [row for row in rows if not _erased(row, there)]
    if connection.dialect.name != "sqlite" and rows:
        connection.execute(insert(connection, decisions).on_conflict_do_nothing(), rows)
        return
    for start in range(0, len(rows), _STATEMENT_ROWS[-1]):
        part = rows[start : start + _STATEMENT_ROWS[-1]]
        size = next(size for size in _STATEMENT_ROWS if size >= len(part))
        part += [part[-1]] * (size - len(part))  # which are there already, then
        values = tuple([value for row in part for value in map(row.__getitem__, _COLUMNS)])
        connection.exec_driver_sql(_inserted(size), values)


@lru_cache(maxsize=len(_STATEMENT_ROWS))
def _inserted(n_rows: int) -> str:
    """SQLite's statement that inserts so many rows; SQLAlchemy would compile its own anew each time."""
    row = f"({', '.join('?' * len(_COLUMNS))})"
    rows = ", ".join([row] * n_rows)
    return f"INSERT INTO {decisions.name} ({', '.join(_COLUMNS)}) VALUES {rows} ON CONFLICT DO NOTHING"


def row_of(record: DecisionRecord) -> dict[str, Any]:
    """Columns of a record.

    Raises
    ------
    ParameterError
        A field breaks a rule of the database.
    """
    check_name("decision_id", record.decision_id)
    for name in _NAMES:
        value = getattr(record, name)
        if value is not None and (not value.isascii() or not value or "\0" in value):  # as a rule not
            check_name(name, value)
    check_number("created_at", record.created_at)
    check_number("propensity", record.propensity, at_least=0.0, at_most=1.0)
    check_number("cost_usd", record.cost_usd)
    row = dict(zip(_SAME, _same_of(record), strict=True))
    row["user_key"] = record.user
    row["offered"] = _json(record.offered)
    row["query_text"] = record.query_text or None
    row["charged"] = False
    if record.query_text is not None and not is_storable(record.query_text):
        cleaned = record.query_text.replace("\0", "\N{REPLACEMENT CHARACTER}")
        row["query_text"] = cleaned.encode(errors="replace").decode()
    if record.query_embedding is not None:
        row["query_embedding"] = np.asarray(record.query_embedding, dtype="<f4").tobytes()
    return row


def _erased(row: Mapping[str, Any], there: Mapping[str, Erasure]) -> bool:
    """Whether a row is from before an erasure of its user, or a readmission."""
    erasure = there.get(row["user_key"])
    return erasure is not None and erasure.covers(row["created_at"])


def embedding_of(stored: bytes | None) -> Floats | None:
    """float32 [e] from its bytes."""
    return None if stored is None else np.frombuffer(stored, dtype="<f4")


@lru_cache(maxsize=4096)
def names_of(stored: str) -> tuple[str, ...]:
    """Names from their JSON list."""
    return tuple(json.loads(stored))


@lru_cache(maxsize=4096)
def _json(names: tuple[str, ...]) -> str:
    return json.dumps(names)


def _record(row: Row[Any]) -> DecisionRecord:
    fields = {name: getattr(row, name) for name in _SAME}
    fields["user"] = row.user_key
    fields["offered"] = names_of(row.offered)
    fields["query_embedding"] = embedding_of(row.query_embedding)
    return DecisionRecord(**fields)


class DecisionBuffer:
    """Decisions on their way to the database.

    Parameters
    ----------
    database
        Where they go. As long as it fails, they are kept and tried again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: dict[str, tuple[DecisionRecord, dict[str, Any]]] = {}
        self._writing = threading.Lock()  # held while some are written, until they are no longer pending
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._hurry = threading.Event()
        self._stopping = False
        self._problem: FeedbackStoreError | None = None
        self._thread = threading.Thread(target=self._run, name="decisions", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> FeedbackStoreError | None:
        """Why the last attempt to write failed; None where it did not, or none is left to be written."""
        return self._problem if self._pending else None

    def add(self, record: DecisionRecord) -> None:
        """Take a decision; it is written within about 50 ms."""
        row = row_of(record)
        with self._lock:
            if len(self._pending) >= _CAPACITY:
                raise FeedbackStoreError(
                    f"{self._database.name}: {_CAPACITY} decisions wait to be written ({self._problem})"
                )
            self._pending[record.decision_id] = record, row
            if len(self._pending) == 1:
                self._changed.notify_all()

    def find(self, decision_id: str) -> tuple[DecisionRecord, dict[str, Any]] | None:
        """A decision that may not be written yet, and its columns."""
        return self._pending.get(decision_id)

    @contextmanager
    def written_with(self, decision_id: str) -> Iterator[None]:
        """A transaction that writes a decision along with what is about it, if it is not written yet.

        Nobody else writes it meanwhile or afterwards: an erasure may have deleted it by then.
        """
        if self.find(decision_id) is None:
            yield
            return
        wait_s = self._database.wait_s
        if not self._writing.acquire(timeout=wait_s):
            raise StoreBusyError(
                f"{self._database.name}: others have been writing for more than {wait_s:g} s"
            )
        try:
            yield
            self._written([decision_id])
        finally:
            self._writing.release()

    def flush(self, timeout_s: float) -> None:
        """Return when all decisions are written.

        Raises
        ------
        FeedbackStoreError
            They were not, within ``timeout_s``.
        """
        self._hurry.set()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._pending, timeout_s):
                raise FeedbackStoreError(
                    f"{self._database.name}: {len(self._pending)} decisions are not written ({self._problem})"
                )

    def close(self, timeout_s: float) -> None:
        """Write what is left, and end the thread."""
        try:
            self.flush(timeout_s)
        finally:
            self._stopping = True
            self._hurry.set()
            with self._changed:
                self._changed.notify_all()
            self._thread.join()

    def _run(self) -> None:
        wait_s = _BATCH_WAIT_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopping)
            if self._stopping:
                return
            if self._problem is not None or len(self._pending) < _LARGEST_BATCH:
                self._hurry.wait(wait_s)  # others come meanwhile, and one commit does for all
                self._hurry.clear()
            try:
                self._write_some()
            except FeedbackStoreError as error:
                self._problem = error
                wait_s = min(2 * wait_s, _LONGEST_RETRY_S)
                log.warning("decisions could not be written, and will be tried again", reason=str(error))
                continue
            self._problem, wait_s = None, _BATCH_WAIT_S

    def _write_some(self) -> None:
        with self._writing:
            with self._lock:
                batch = list(islice(self._pending.items(), _LARGEST_BATCH))
            self._write([row for _, (_, row) in batch])
            self._written([decision_id for decision_id, _ in batch])

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with self._database.write(durable=False) as connection:
            erasures.hold(connection)
            write(connection, rows)

    def _written(self, decision_ids: Iterable[str]) -> None:
        with self._changed:
            for decision_id in decision_ids:
                self._pending.pop(decision_id, None)
            self._changed.notify_all()
