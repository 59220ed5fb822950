"""What is left of an erasure: clocks that go wrong, many decisions, readers in the way, restored backups."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert

from router.erasure import Erasure, user_digest
from router.service.store import (
    ErasedUserError,
    Feedback,
    FeedbackStoreError,
    UnknownDecisionError,
    new_id,
    open_store,
)
from router.service.store import erasures as module
from router.service.store.tables import decisions
from tests.service.store.test_store_erasures import ANNA, NOW, cells, decided, live, named
from tests.service.store.test_store_faults import start

DAY_S = 86_400.0


def fill(store, user: str, n: int) -> None:
    """Many decisions for a user, at once."""
    rows = [
        {
            "decision_id": new_id(),
            "created_at": NOW,
            "user_key": user,
            "release": "r1",
            "llm": "brief",
            "propensity": 1.0,
            "source": "trained",
            "offered": "[]",
            "endpoint": "route",
            "charged": False,
        }
        for _ in range(n)
    ]
    with store._database.write(durable=False) as connection:
        connection.execute(insert(decisions), rows)


def n_decisions(url: str, user: str) -> int:
    return sum(table == "decisions" and value == user for table, value in cells(url))


def test_a_clock_far_ahead_is_not_followed(opened):
    here, there = opened(), opened()
    there.erase_user("ann", now=time.time() + DAY_S)
    before = time.time()
    erased = here.erase_user("ben")
    assert before - 1 <= erased.erasure.requested_at <= time.time() + 1
    assert here.readmit_user("ben")
    time.sleep(0.01)
    here.add_feedback(Feedback(user="ben", llm="kind"))  # at once, not in a day
    assert [one.user_digest for one in there.erasures_since(0)[1]] == [
        user_digest(user) for user in ("ann", "ben")
    ]
    # Those of clocks that differ a little still are in order.
    times = [
        here.erase_user(name, now=NOW - late).erasure.requested_at for name, late in (("c", 0), ("d", 9))
    ]
    assert times == [NOW, pytest.approx(NOW + 1e-6, abs=2e-7)]


def test_decisions_from_before_an_erasure_do_not_come_back(opened, url, monkeypatch):
    here, there = opened(), opened()
    write = here._decisions._write
    locked = threading.Event()

    def wait(rows) -> None:
        if not locked.is_set():
            raise FeedbackStoreError("locked")
        write(rows)

    monkeypatch.setattr(here._decisions, "_write", wait)
    old = decided(here, created_at=time.time() - 1)
    there.erase_user(ANNA)
    assert there.readmit_user(ANNA)
    with pytest.raises(UnknownDecisionError):
        here.add_feedback(Feedback(old, thumbs=1))
    time.sleep(0.01)
    young = decided(here, created_at=time.time())
    locked.set()
    here.flush()
    assert n_decisions(url, ANNA) == 1
    assert there.decision(young) is not None


def test_a_decision_that_another_claims_too_stays_without_its_words(store, url):
    both, alone = (decided(store, user=None, query_text=f"{ANNA} asks") for _ in range(2))
    store.add_feedback(Feedback(both, user="ben", thumbs=1, llm="kind"))
    for decision in (both, alone):
        store.add_feedback(Feedback(decision, user=ANNA, thumbs=1))
    store.add_feedback(Feedback(alone, cost_usd=0.5))
    erased = store.erase_user(ANNA)
    assert (erased.rows["decisions"], erased.rows["feedback"]) == (1, 3)
    (event,) = store.events_of("ben")
    assert (event.llm, event.task) == ("kind", "code")
    assert named(url, ANNA, alone) == set()
    store.add_feedback(Feedback(both, user="ben", thumbs=-1))


@pytest.mark.parametrize("kills", [False, True])
def test_many_decisions_are_deleted_in_turn_with_others(opened, url, monkeypatch, kills):
    monkeypatch.setattr(module, "_BATCH_ROWS", 50)
    here, there = opened(), opened()
    fill(here, ANNA, 1000)
    traces = live(here, ANNA)
    erased = here.erase_user(ANNA, wait_s=0.0 if kills else 60.0)
    assert erased.swept is not kills
    assert there.decision(traces["decision"]) is None  # whether or not it is still there
    if kills:
        assert n_decisions(url, ANNA) > 0
        here._sweeper.stop()  # as of a process that is gone
        assert there.sweep()
    else:
        assert erased.rows["decisions"] == 1004
    assert named(url, ANNA) == set()
    assert n_decisions(url, "ben") == 0


def test_a_readmission_waits_for_what_is_left(opened, url, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_ROWS", 50)
    here, there = opened(), opened()
    fill(here, ANNA, 300)
    here.erase_user(ANNA, wait_s=0.0)
    here._sweeper.stop()
    there.readmit_user(ANNA)
    assert n_decisions(url, ANNA) == 0


SWEPT = """
import sys
import router.service.store.erasures as module
from router.service.store import open_store
module._BATCH_ROWS = 20
store = open_store(sys.argv[1])
print("ready", flush=True)
store.erase_user(sys.argv[2])
"""


def test_a_killed_erasure_of_many_is_gone_on_with(url, opened):
    store = opened()
    fill(store, ANNA, 3000)
    killed = start(SWEPT, url, ANNA)
    assert killed.stdout.readline() == "ready\n"
    while not store.erasures():
        time.sleep(0.005)
    time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert n_decisions(url, ANNA) > 0
    assert store.sweep()
    assert named(url, ANNA) == set()
    assert store.sweep()


def test_whoever_reads_is_told_of_and_waited_for(tmp_path):
    path = tmp_path / "feedback.db"
    files = (path, Path(f"{path}-wal"))

    def there() -> bool:
        return any(ANNA.encode() in file.read_bytes() for file in files if file.exists())

    with open_store(f"sqlite:///{path}") as store:
        live(store, ANNA)
        reader = sqlite3.connect(path)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM decisions").fetchall()
        assert not store.erase_user(ANNA).swept
        assert there()
        reader.close()
        end_s = time.monotonic() + 10
        while there():
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_a_restored_backup_forgets_again(opened, url):
    """The oracle: the same users erased by name."""
    store = opened()
    users = ("ann", "ben", "cyd", "dan")
    for user in users:
        live(store, user)
    given = [
        Erasure(user_digest("ann"), NOW),
        Erasure(user_digest("cyd"), NOW + 1, NOW + 2),
        Erasure(user_digest("nobody"), NOW + 3),
    ]
    cursor, _ = store.erasures_since(0)
    applied = store.apply_erasures(given)
    assert (applied.n_new, applied.swept, applied.rows["decisions"]) == (3, True, 8)
    for user in users:
        assert bool(named(url, f"session-{user}")) == (user in ("ben", "dan"))
        assert bool(named(url, user)) == (user in ("ben", "dan"))
    assert sorted(store.erasures(), key=lambda one: one.requested_at) == given
    assert len(store.erasures_since(cursor)[1]) == 3  # services hear of them
    with pytest.raises(ErasedUserError):
        store.add_feedback(Feedback(user="ann", llm="kind"))
    store.add_feedback(Feedback(user="cyd", llm="kind"))
    again = store.apply_erasures(given)
    assert (again.n_new, sum(again.rows.values())) == (0, 0)
    assert len(store.events_of("cyd")) == 1
    # An older list changes nothing, a later readmission does.
    store.apply_erasures([replace(given[0], requested_at=NOW - 5, lifted_at=NOW - 4)])
    assert store.erasures()[0] == given[0]
    assert store.apply_erasures([replace(given[0], lifted_at=NOW + 9)]).n_new == 1
    assert store.erasures()[0].lifted_at == NOW + 9
