"""Pruning, against a plain model of what may go; and beside others who write."""

from __future__ import annotations

import random
import secrets
import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy import select

from router.errors import ParameterError
from router.service.store import DecisionRecord, Feedback, UnknownDecisionError, pruning
from router.service.store.tables import decisions, feedback, rates, reservations, sessions

NOW = 1_764_000_000.0
DAY_S = 86_400.0


def decided(store, created_at: float, user: str = "anna") -> str:
    decision_id = f"{int(1e3 * created_at):012x}{secrets.token_hex(10)}"
    record = DecisionRecord(decision_id, created_at, user, "r1", "brief", 1.0, "trained", cost_usd=1.0)
    store.add_decision(replace(record, offered=("brief", "kind")))
    return decision_id


def keys(store, table) -> set[str]:
    with store._database.read() as connection:
        return set(connection.scalars(select(table.primary_key.columns[0])))


def test_what_goes_is_what_a_plain_model_says(store, monkeypatch):
    monkeypatch.setattr(pruning, "_BATCH_ROWS", 7)
    monkeypatch.setattr(pruning, "_PAUSE_S", 0.0)
    rng = random.Random(0)
    older_than_s = 30 * DAY_S
    stay: dict[str, set[str]] = {name: set() for name in ("decisions", "sessions", "reservations", "rates")}
    n_gone = dict.fromkeys(stay, 0)

    def may_go(table: str, key: str, at: float, *, needed: bool = False) -> None:
        if needed or at >= NOW - older_than_s:
            stay[table].add(key)
        else:
            n_gone[table] += 1

    budgets = {"user:anna": 1e9, "key:k": None}
    ages_days = sorted(rng.choices([0.0, 1.0, 29.0, 29.99, 30.01, 31.0, 400.0], k=80), reverse=True)
    for number, age_days in enumerate(ages_days):
        at = NOW - age_days * DAY_S
        decision, judged = decided(store, at), rng.random() < 0.3
        if judged:
            told = {"thumbs": 1} if rng.random() < 0.5 else {"latency_ms": 5.0}
            store.add_feedback(Feedback(decision, **told), now=at)
        may_go("decisions", decision, at, needed=judged)
        store.keep_session(f"s{number}", "anna", "brief", decision, at)
        may_go("sessions", f"s{number}", at)
        reservation = store.reserve(budgets, "2025-11", 0.25, now=at)
        may_go("reservations", reservation, at)
        store.take(f"address:{number}", 10, at)
        may_go("rates", f"address:{number}", at)
    store.flush()
    told_before, spent_before = keys(store, feedback), store.spent_usd(list(budgets), "2025-11")
    told: list[tuple[str, int]] = []
    removed = store.prune(older_than_s, now=NOW, tell=lambda *said: told.append(said))
    assert removed == n_gone
    assert min(n_gone.values()) > 0
    for table in (decisions, sessions, reservations, rates):
        assert keys(store, table) == stay[table.name]
        assert max(n for name, n in told if name == table.name) == n_gone[table.name]
    assert keys(store, feedback) == told_before
    assert store.spent_usd(list(budgets), "2025-11") == {
        name: pytest.approx(usd) for name, usd in spent_before.items()
    }
    assert sum(store.prune(older_than_s, now=NOW).values()) == 0


def test_a_decision_that_is_pruned_while_feedback_comes_stays_so(opened, monkeypatch):
    """It may be gone because its user was erased: nobody could tell."""
    here, there = opened(), opened()
    decision = decided(here, NOW - 40 * DAY_S)
    here.flush()
    found = here.decision(decision)
    assert there.prune(30 * DAY_S, now=NOW)["decisions"] == 1
    monkeypatch.setattr(here, "decision", lambda _: found)  # read a moment before
    with pytest.raises(UnknownDecisionError):
        here.add_feedback(Feedback(decision, thumbs=1), now=NOW)
    assert keys(there, decisions) == keys(there, feedback) == set()


@pytest.mark.parametrize("older_than_s", [DAY_S - 1, 0.0, -1.0, float("nan"), float("inf")])
def test_a_day_at_least(store, older_than_s):
    with pytest.raises(ParameterError, match=r"'older_than_s' must be finite, at least 86400"):
        store.prune(older_than_s)


def test_others_write_meanwhile(opened):
    """A writer that waits for its turn at most some batches long, while 5,000 decisions are removed."""
    here, there = opened(), opened()
    for _ in range(5_000):
        decided(here, NOW - 40 * DAY_S)
    here.flush()
    done, waits_s = threading.Event(), []

    def write() -> None:
        while not done.is_set():
            begun_s = time.monotonic()
            there.add_feedback(Feedback(user="ben", llm="kind"))
            waits_s.append(time.monotonic() - begun_s)
            time.sleep(0.005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert here.prune(30 * DAY_S, now=NOW)["decisions"] == 5_000
    finally:
        done.set()
        writer.join()
    assert len(waits_s) > 10
    assert max(waits_s) < 2.0  # of the five seconds after which a writer gives up
