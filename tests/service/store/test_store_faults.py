"""Killed processes, several writers at once, and a full disk."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from router.service.store import (
    DecisionRecord,
    Feedback,
    FeedbackStoreError,
    StoreBusyError,
    new_id,
    open_store,
)

ROOT = Path(__file__).resolve().parents[3]

KILLED = """
import os, signal, sys, time
from router.service.store import DecisionRecord, Feedback, new_id, open_store
store = open_store(sys.argv[1])
decision = DecisionRecord(new_id(), time.time(), "anna", "r1", "brief", 1.0, "trained")
store.add_decision(decision)
accepted = store.add_feedback(Feedback(decision.decision_id, thumbs=1), idempotency_key="once")
print(accepted.feedback_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

WRITER = """
import sys, time
from router.service.store import DecisionRecord, Feedback, new_id, open_store
url, name = sys.argv[1:]
with open_store(url) as store:
    for number in range(60):
        decision = DecisionRecord(new_id(), time.time(), name, "r1", "brief", 1.0, "trained")
        store.add_decision(decision)
        store.add_feedback(Feedback(decision.decision_id, thumbs=1))
        store.add_feedback(Feedback(user="shared", llm="kind"), idempotency_key=str(number))
        store.settle(store.reserve({"user:shared": None}, "day", 2.0), 1.0)
"""

FULL = """
import resource, sys
from router.service.store import Feedback, FeedbackStoreError, open_store
with open_store(sys.argv[1]) as store:
    store.add_feedback(Feedback(user="anna", llm="kind"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    accepted = 1
    try:
        while True:
            store.add_feedback(Feedback(user="anna", llm="kind", items=(("x" * 5000, 1.0),)))
            accepted += 1
    except FeedbackStoreError as error:
        print(accepted, error, sep="|")
"""


READ_ONLY = """
import os, sqlite3, sys
import sqlalchemy.dialects.sqlite.pysqlite
from router.service.store import FeedbackStoreError, open_store
if os.getuid() == 0:
    os.setuid(65534)  # permissions do not hold root back
try:
    open_store(sys.argv[1])
except FeedbackStoreError as error:
    print(error)
"""


def start(code: str, *args: str, stdin: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, stdin=pipe if stdin else None, stdout=pipe, stderr=pipe, text=True
    )


def test_accepted_feedback_outlives_a_killed_process(url):
    killed = start(KILLED, url)
    feedback_id, errors = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, errors
    with open_store(url) as store:
        assert len(store.events_of("anna")) == 1
        with store._database.read() as connection:
            kept = connection.exec_driver_sql("SELECT feedback_id FROM feedback").scalars().all()
    assert kept == [feedback_id.strip()]


def test_two_processes_writing_at_once_lose_nothing(url):
    writers = [start(WRITER, url, name) for name in ("anna", "ben")]
    ends = [writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], ends
    with open_store(url) as store:
        assert len(store.events_of("anna")) == len(store.events_of("ben")) == 60
        assert len(store.events_of("shared")) == 60  # of each idempotency key one
        assert store.spent_usd(["user:shared"], "day") == {"user:shared": 120.0}
        assert store.users_changed_since(0)[0] >= 180


def test_a_writer_gives_up_in_time_and_writes_nothing(opened, url):
    other = opened()
    held = other.reserve({"user:anna": None}, "day", 1.0)
    with open_store(url, 0.2) as store:
        for holder in (other, store):  # another process, as it were, and another thread
            with holder._database.write(durable=False) as connection:
                connection.exec_driver_sql("UPDATE spending SET usd = 2 WHERE subject = 'user:anna'")
                with (
                    ThreadPoolExecutor(1) as thread,
                    pytest.raises(StoreBusyError, match=r"more than 0\.2 s"),
                ):
                    thread.submit(store.settle, held, 0.5).result(timeout=2)
        assert store.spent_usd(["user:anna"], "day") == {"user:anna": 3.0}  # still reserved
        assert store.settle(held, 0.5)


def test_what_feedback_has_written_is_no_problem_any_more(store, monkeypatch):
    def fails(_rows) -> None:
        raise FeedbackStoreError("locked")

    monkeypatch.setattr(store._decisions, "_write", fails)
    record = DecisionRecord(new_id(), time.time(), "ann", "r1", "kind", 1.0, "trained")
    store.add_decision(record)
    end_s = time.monotonic() + 10
    while store.problem is None:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    store.add_feedback(Feedback(record.decision_id, thumbs=1))
    assert store.problem is None
    store.flush()


def test_a_full_disk_is_an_error_and_what_was_accepted_is_there(tmp_path):
    """SQLite's files may not grow beyond a size: for SQLite the same as no space."""
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    full = start(FULL, url)
    told, errors = full.communicate()
    assert full.returncode == 0, errors
    accepted, message = told.strip().split("|")
    assert message.startswith(f"{url}: the feedback store failed (")
    with open_store(url) as store:
        assert len(store.events_of("anna")) == int(accepted) > 5


def test_a_store_that_may_not_be_written_is_an_error():
    with TemporaryDirectory() as name:
        folder = Path(name)
        open_store(f"sqlite:///{folder / 'feedback.db'}").close()
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        told, errors = start(READ_ONLY, f"sqlite:///{folder / 'feedback.db'}").communicate()
    assert "feedback.db: cannot be written (Permission denied)" in told, errors


def test_many_threads_share_few_connections(opened):
    store = opened()
    with ThreadPoolExecutor(40) as threads:
        told = list(
            threads.map(lambda i: store.add_feedback(Feedback(user=f"u{i % 4}", llm="kind")), range(120))
        )
        seen = list(threads.map(lambda i: len(store.events_of(f"u{i % 4}")), range(120)))
    assert len({accepted.feedback_id for accepted in told}) == 120
    assert seen == [30] * 120
