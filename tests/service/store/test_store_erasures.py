"""A user is erased: the oracle reads every row of every table, and looks for the user's key and ids."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sqlalchemy import create_engine, insert, select

from router.erasure import Erasure, user_digest
from router.errors import ParameterError
from router.service.store import (
    DecisionRecord,
    ErasedUserError,
    Feedback,
    FeedbackStoreError,
    UnknownDecisionError,
    new_id,
    open_store,
    spending,
)
from router.service.store import feedback as feedback_module
from router.service.store.tables import SCHEMA, feedback, metadata
from tests.service.store.test_store_faults import start

NOW = 1_764_000_000.0
ANNA = "anna-of-erasure-4711"


def decided(store, **changed) -> str:
    record = DecisionRecord(
        decision_id=new_id(),
        created_at=NOW,
        user=ANNA,
        release="r1",
        llm="brief",
        propensity=1.0,
        source="trained",
        task="code",
        query_text="why?",
        query_embedding=np.array([1.0, 2.0], dtype=np.float32),
        offered=("brief", "kind"),
        key_id="k1",
    )
    record = replace(record, **changed)
    store.add_decision(record)
    return record.decision_id


def cells(url: str) -> Iterator[tuple[str, str]]:
    """Every value of every row, as text, with its table."""
    engine = create_engine(url)
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            for row in connection.execute(select(table)):
                for value in row:
                    yield table.name, value.decode("latin-1") if isinstance(value, bytes) else str(value)
    engine.dispose()


def named(url: str, *texts: str) -> set[str]:
    """Tables in which one of the texts stands."""
    return {table for table, value in cells(url) if any(text in value for text in texts)}


def live(store, user: str) -> dict[str, object]:
    """A user who left something in every table that names users; ids of what there is."""
    mine = [decided(store, user=user, key_id=key) for key in ("k1", "k2", "k2")]
    claimed = decided(store, user=None, query_text=f"asked by {user}")
    told = [
        store.add_feedback(Feedback(mine[0], thumbs=1), key_id="k1", idempotency_key=f"once-{user}"),
        store.add_feedback(Feedback(mine[1], cost_usd=1.0), key_id="k2"),
        store.add_feedback(Feedback(user=user, items=(("book", 1.0),))),
        store.add_feedback(Feedback(claimed, user=user, thumbs=1), key_id="k1"),
    ]
    store.keep_session(f"session-{user}", user, "brief", mine[2], NOW)
    held = store.reserve({f"user:{user}": None, "key:k1": None}, "2025-11", 0.25)
    store.flush()
    ids = [*mine, claimed, *(accepted.feedback_id for accepted in told)]
    return {"ids": ids, "decision": mine[0], "held": held, "session": f"session-{user}"}


def test_nothing_of_an_erased_user_is_left_and_all_of_the_others(store, url):
    left = live(store, "ben")
    before = sorted(cells(url))
    traces = live(store, ANNA)
    texts = [ANNA, *traces["ids"]]
    assert named(url, *texts) == {"decisions", "feedback", "sessions", "spending", "reservations"}
    erased = store.erase_user(ANNA)
    assert erased.rows == {"decisions": 4, "feedback": 4, "sessions": 1, "spending": 2, "reservations": 1}
    assert named(url, *texts) == set()
    digest = user_digest(ANNA)
    assert store.erasures() == (Erasure(digest, pytest.approx(time.time(), abs=5)),)

    # What is left of hers is what the API keys spent, without a name.
    def others(rows):
        return [
            (table, value) for table, value in rows if table not in ("erasures", "spending", "reservations")
        ]

    assert others(sorted(cells(url))) == others(before)
    assert store.spent_usd(["user:ben", f"user:{ANNA}"], "2025-11") == {"user:ben": 1.25, f"user:{ANNA}": 0.0}
    assert store.spent_usd(["key:k1", "key:k2"], "2025-11") == {"key:k1": 0.5, "key:k2": 2.0}
    assert store.session(left["session"]) is not None
    again = store.erase_user(ANNA)
    assert (again.erasure, sum(again.rows.values())) == (erased.erasure, 0)


def test_nothing_of_an_erased_user_is_in_sqlites_files(tmp_path):
    def files_with(text: str) -> list[str]:
        return [path.name for path in tmp_path.iterdir() if text.encode() in path.read_bytes()]

    with open_store(f"sqlite:///{tmp_path / 'feedback.db'}") as store:
        live(store, "ben")
        live(store, ANNA)
        assert files_with(ANNA)
        store.erase_user(ANNA)
        assert files_with(ANNA) == []  # neither in the database's free pages nor in its log
        assert files_with("ben")


def test_whatever_names_an_erased_user_is_refused(opened, url):
    here, there = opened(), opened()
    traces = live(here, ANNA)
    for_nobody = decided(here, user=None)
    here.flush()
    there.erase_user(ANNA)
    before = sorted(cells(url))
    with pytest.raises(UnknownDecisionError):
        here.add_feedback(Feedback(traces["decision"], thumbs=1))
    with pytest.raises(ErasedUserError) as refused:
        here.add_feedback(Feedback(user=ANNA, llm="kind"))
    assert ANNA not in str(refused.value)
    with pytest.raises(ErasedUserError):
        here.add_feedback(Feedback(for_nobody, user=ANNA, thumbs=1))
    with pytest.raises(ErasedUserError):
        here.keep_session("s", ANNA, "kind", "d", NOW)
    with pytest.raises(ErasedUserError):
        here.reserve({"key:k1": None, f"user:{ANNA}": None}, "2025-11", 1.0)
    decided(here)
    here.flush()
    assert sorted(cells(url)) == before
    # Of what had been reserved, the key's part is still settled.
    spent = here.spent_usd(["key:k1"], "2025-11")["key:k1"]
    assert here.settle(traces["held"], 1.0)
    assert here.spent_usd(["key:k1"], "2025-11")["key:k1"] == pytest.approx(spent - 0.25 + 1.0)
    assert named(url, ANNA) == set()


def test_a_settlement_that_is_under_way_leaves_nothing(opened, url, monkeypatch):
    here, there = opened(), opened()
    held = here.reserve({f"user:{ANNA}": None, "key:k1": None}, "2025-11", 0.5)
    add, erasing = spending.add, []

    def slow_add(*args) -> None:
        if not erasing:
            erasing.append(threads.submit(there.erase_user, ANNA))
            time.sleep(0.3)
        add(*args)

    with ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(spending, "add", slow_add)
        assert here.settle(held, 0.25)
        erasing[0].result()
    assert named(url, ANNA) == set()
    assert here.spent_usd(["key:k1"], "2025-11") == {"key:k1": 0.25}


def test_feedback_on_a_decision_that_is_erased_before_it_is_written(opened, monkeypatch):
    here, there = opened(), opened()
    decision = decided(here)
    found = here.decision(decision)
    there.erase_user(ANNA)
    monkeypatch.setattr(here, "decision", lambda _: found)  # read a moment before
    with pytest.raises(UnknownDecisionError):
        here.add_feedback(Feedback(decision, thumbs=1))


@pytest.mark.parametrize("failed", [False, True])
def test_what_is_erased_before_its_decision_is_written_does_not_come_back(opened, url, monkeypatch, failed):
    """The decision is for nobody: only the feedback, which is written at once, tells whose it is."""
    store = opened()
    write, add = store._decisions._write_some, feedback_module.add
    held = threading.Event()
    monkeypatch.setattr(store._decisions, "_write_some", lambda: held.wait() and write())
    decision = decided(store, user=None, query_text=f"{ANNA} asks")
    if failed:  # then the decision is still on its way

        def fails(*_args) -> None:
            raise FeedbackStoreError("the disk is full")

        monkeypatch.setattr(feedback_module, "add", fails)
        with pytest.raises(FeedbackStoreError):
            store.add_feedback(Feedback(decision, user=ANNA, thumbs=1))
        monkeypatch.setattr(feedback_module, "add", add)
    else:
        store.add_feedback(Feedback(decision, user=ANNA, thumbs=1))
        assert store.decision(decision) is not None
        assert store.erase_user(ANNA).rows["decisions"] == 1
    held.set()
    store.flush()
    assert (store.decision(decision) is not None) == failed
    assert named(url, ANNA) == ({"decisions"} if failed else set())


def test_of_two_who_claim_a_decision_the_second_does_not_bring_it_back(opened, url, monkeypatch):
    """The first has written it and is erased before it tells the buffer."""
    here, there = opened(), opened()
    write, written = here._decisions._write_some, here._decisions._written
    held, told = threading.Event(), threading.Event()
    monkeypatch.setattr(here._decisions, "_write_some", lambda: held.wait() and write())
    decision = decided(here, user=None, query_text=f"{ANNA} asks")

    def late(decision_ids) -> None:
        told.set()
        there.erase_user(ANNA)
        time.sleep(0.1)  # for the second
        written(decision_ids)

    monkeypatch.setattr(here._decisions, "_written", late)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(here.add_feedback, Feedback(decision, user=ANNA, thumbs=1))
        assert told.wait(10)
        with pytest.raises(UnknownDecisionError):
            here.add_feedback(Feedback(decision, user="ben", thumbs=1))
        first.result()
    held.set()
    here.flush()
    assert named(url, ANNA, decision) == set()


def test_a_decision_that_is_deleted_while_feedback_comes_stays_so(opened, url, monkeypatch):
    here, there = opened(), opened()
    decision = decided(here, user=None, query_text=f"{ANNA} asks")
    here.add_feedback(Feedback(decision, user=ANNA, thumbs=1))
    found = here.decision(decision)
    there.erase_user(ANNA)
    monkeypatch.setattr(here, "decision", lambda _: found)  # read a moment before
    with pytest.raises(UnknownDecisionError):
        here.add_feedback(Feedback(decision, user="ben", thumbs=1))
    assert named(url, ANNA, decision) == set()


def test_a_readmitted_user_is_new(opened, url, tmp_path):
    here, there = opened(), opened()
    assert not here.readmit_user(ANNA)
    live(here, ANNA)
    here.erase_user(ANNA, now=NOW + 10)
    assert there.readmit_user(ANNA, now=NOW + 20)
    assert not there.readmit_user(ANNA)
    assert here.erasures() == (Erasure(user_digest(ANNA), NOW + 10, NOW + 20),)
    with pytest.raises(ErasedUserError):
        here.add_feedback(Feedback(user=ANNA, llm="kind", occurred_at=NOW + 15), now=NOW + 30)
    here.add_feedback(Feedback(decided(here, created_at=NOW + 21), thumbs=1), now=NOW + 30)
    assert len(there.events_of(ANNA)) == 1
    assert here.erase_user(ANNA, now=NOW + 40).rows["feedback"] == 1
    assert here.erasures() == (Erasure(user_digest(ANNA), NOW + 40),)
    assert named(url, ANNA) == set()


def test_covers_is_the_rule_of_the_pipeline():
    assert Erasure("d", 1.0).covers(None)
    assert Erasure("d", 1.0).covers(1e12)
    lifted = Erasure("d", 1.0, 5.0)
    assert [lifted.covers(at) for at in (None, 0.0, 5.0, 5.1)] == [True, True, True, False]


def test_changes_are_followed_in_the_order_of_commits_whatever_the_clocks(opened):
    here, there = opened(), opened()
    cursor, changes = there.erasures_since(0)
    assert changes == []
    seen = []
    for user, now in (("a", 100.0), ("b", 50.0), ("c", 100.0)):  # the clock of one is behind
        here.erase_user(user, now=now)
        cursor, changes = there.erasures_since(cursor)
        seen += [change.user_digest for change in changes]
    here.readmit_user("a", now=10.0)
    cursor, (change,) = there.erasures_since(cursor)
    assert (change.user_digest, change.active) == (user_digest("a"), False)
    assert seen == [user_digest(user) for user in "abc"]
    assert there.erasures_since(cursor) == (cursor, [])
    times = [erasure.requested_at for erasure in here.erasures()]
    assert times == sorted(set(times))


@pytest.mark.parametrize("user", ["", "a\0"])
def test_a_user_needs_a_storable_name(store, user):
    with pytest.raises(ParameterError, match="'user' must be text"):
        store.erase_user(user)


def test_an_export_holds_no_row_of_an_erased_user(opened, tmp_path):
    """Not even one that is in the table by whatever mistake, or from before a readmission."""
    here, there = opened(), opened()
    for user in ("ben", ANNA):
        here.add_feedback(Feedback(decided(here, user=user), thumbs=1, items=(("book", 1.0),)), now=NOW)
    here.erase_user(ANNA, now=NOW + 5)
    row = {"feedback_id": "f", "user_key": ANNA, "llm": "kind", "verdict": 1, "at": NOW, "received_at": NOW}
    with here._database.write(durable=False) as connection:
        connection.execute(insert(feedback), row)

    def users(name: str) -> set[str]:
        there.export(tmp_path / name)
        tables = ("choices", "interactions", "judgements")
        return {
            user
            for table in tables
            for user in pq.read_table(tmp_path / name / f"{table}.parquet")["user"].to_pylist()
        }

    assert users("erased") == {"ben"}
    here.readmit_user(ANNA, now=NOW + 6)
    assert users("readmitted") == {"ben"}
    here.add_feedback(Feedback(user=ANNA, items=(("book", 1.0),)), now=NOW + 7)
    assert users("again") == {"ben", ANNA}


def test_until_is_when_feedback_was_received(store, tmp_path):
    for second in range(4):
        decision = decided(store, user="ben")
        store.add_feedback(Feedback(decision, thumbs=1, occurred_at=NOW - 9), now=NOW + second)
    assert store.export(tmp_path / "one", since=NOW + 1, until=NOW + 3).n_choices == 2
    assert store.export(tmp_path / "two", until=NOW).n_choices == 0


def test_writers_and_an_erasure_at_once_leave_nothing(opened, url):
    """Two workers decide, hear feedback, keep sessions and reserve while a third erases."""
    workers, eraser = [opened(), opened()], opened()
    stopped = threading.Event()

    def write(number: int) -> int:
        store, refused = workers[number % 2], 0
        while not stopped.is_set():
            try:
                user = ANNA if number % 3 else "ben"
                decision = decided(store, user=user)
                store.add_feedback(Feedback(decision, thumbs=1, cost_usd=0.5))
                store.keep_session(f"s{number}", user, "kind", decision, time.time())
                store.settle(store.reserve({f"user:{user}": None, "key:k1": None}, "2025-11", 0.5), 0.25)
            except (ErasedUserError, UnknownDecisionError):
                refused += 1
                time.sleep(0.005)
        return refused

    with ThreadPoolExecutor(4) as threads:
        writing = [threads.submit(write, number) for number in range(4)]
        try:
            time.sleep(0.3)
            erased = eraser.erase_user(ANNA)
            time.sleep(0.3)
        finally:
            stopped.set()
        refused = [one.result() for one in writing]
    for worker in workers:
        worker.flush()
    assert min(erased.rows["decisions"], erased.rows["feedback"]) > 0
    assert sum(refused) > 0
    assert named(url, ANNA) == set()
    assert len(eraser.events_of("ben")) > 0


KILLED = """
import os, signal, sys, threading, time
from router.service.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
def kill():
    time.sleep(float(sys.argv[3]))
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill).start()
store.erase_user(sys.argv[2])
time.sleep(60)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.01, 0.5])
def test_a_killed_erasure_is_whole_or_not_at_all(url, opened, after_s):
    store = opened()
    live(store, ANNA)
    whole = sorted(cells(url))
    killed = start(KILLED, url, ANNA, str(after_s), stdin=True)
    assert killed.stdout.readline() == "ready\n"
    _, errors = killed.communicate("\n")
    assert killed.returncode == -signal.SIGKILL, errors
    if store.erasures():
        assert store.sweep()
        assert named(url, ANNA) == set()
    else:
        assert after_s < 0.5
        assert sorted(cells(url)) == whole
    store.erase_user(ANNA)
    assert named(url, ANNA) == set()


def test_a_store_of_the_first_schema_is_brought_up_to_date(url, opened):
    from alembic import command
    from alembic.config import Config

    import router.service.store as package

    config = Config()
    config.set_main_option("script_location", str(Path(package.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        row = {
            "feedback_id": "f",
            "user_key": ANNA,
            "llm": "kind",
            "verdict": 1,
            "at": NOW,
            "received_at": NOW,
        }
        connection.execute(insert(feedback), row)
    engine.dispose()
    assert SCHEMA > "0001"
    assert opened().erase_user(ANNA).rows["feedback"] == 1
