"""Decisions: buffered, written soon, seen by all workers, kept while the database fails."""

from __future__ import annotations

import time
from dataclasses import fields, replace

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from router.errors import ParameterError
from router.service.store import DecisionRecord, FeedbackStoreError, decisions, new_id
from router.service.store.decisions import row_of


def decision(**changed) -> DecisionRecord:
    whole = DecisionRecord(
        decision_id=new_id(),
        created_at=1_700_000_000.25,
        user="anna",
        release="r1",
        llm="brief",
        propensity=0.75,
        source="trained",
        task="code",
        query_hash="abc",
        query_text="what is a monad?",
        query_embedding=np.array([0.1, -2.5, 3.0], dtype=np.float32),
        offered=("brief", "kind"),
        cost_usd=0.002,
        key_id="k",
        session_id="s",
        endpoint="chat",
    )
    return replace(whole, **changed)


def same(one: DecisionRecord, other: DecisionRecord | None) -> bool:
    assert other is not None
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_ids_are_unique_and_sort_by_time():
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {len(i) for i in ids} == {32}
    time.sleep(0.002)
    assert new_id() > max(ids)


@pytest.mark.parametrize(
    "missing", [(), ("user", "task", "query_hash", "query_text", "query_embedding", "cost_usd")]
)
def test_a_decision_comes_back_as_it_was_from_here_and_from_another_worker(opened, missing):
    here, there = opened(), opened()
    record = decision(**dict.fromkeys(missing))
    here.add_decision(record)
    assert here.decision(record.decision_id) is record  # not written yet
    here.flush()
    assert same(record, there.decision(record.decision_id))
    assert same(record, here.decision(record.decision_id))


def test_an_unknown_decision_may_be_on_its_way_only_while_it_is_young(store):
    for made_up in ("0" * 32, "nonsense", f"{'f' * 12}{'0' * 20}"):
        assert store.decision(made_up) is None
        assert not store.may_be_on_its_way(made_up)
    young = new_id()
    assert store.decision(young) is None
    assert store.may_be_on_its_way(young)


def test_many_decisions_of_several_workers_are_all_written_and_closing_waits_for_them(opened):
    workers = [opened() for _ in range(3)]
    records = [decision() for _ in range(1800)]
    for number, record in enumerate(records):
        workers[number % 3].add_decision(record)
    for worker in workers:
        worker.close()
    reader = opened()
    assert all(same(record, reader.decision(record.decision_id)) for record in records[::50])
    with reader._database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM decisions")) == 1800


def test_decisions_are_kept_while_the_database_fails(store, url, monkeypatch):
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE decisions RENAME TO away"))
    record = decision()
    store.add_decision(record)
    with pytest.raises(FeedbackStoreError, match=r"1 decisions are not written .*decisions"):
        store.flush(timeout_s=0.2)
    assert store.problem is not None
    monkeypatch.setattr(decisions, "_CAPACITY", 2)
    store.add_decision(decision())
    with pytest.raises(FeedbackStoreError, match="2 decisions wait"):
        store.add_decision(decision())
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO decisions"))
    engine.dispose()
    store.flush()
    assert store.problem is None
    assert same(record, store.decision(record.decision_id))


@pytest.mark.parametrize(
    "changed",
    [
        {"user": ""},
        {"user": "a\0b"},
        {"task": "a\ud800"},
        {"propensity": float("nan")},
        {"propensity": 1.5},
        {"cost_usd": float("inf")},
        {"created_at": float("nan")},
    ],
    ids=repr,
)
def test_what_a_database_could_not_hold_is_refused_at_once(store, changed):
    with pytest.raises(ParameterError, match=next(iter(changed))):
        store.add_decision(decision(**changed))


def test_texts_of_queries_are_made_storable(opened):
    here, there = opened(), opened()
    record = decision(query_text="a\0b\ud800c")
    here.add_decision(record)
    here.flush()
    found = there.decision(record.decision_id)
    assert found is not None
    assert found.query_text == "a\N{REPLACEMENT CHARACTER}b?c"
    assert row_of(decision(query_text=""))["query_text"] is None


@pytest.mark.parametrize("n", [1, 2, 4, 5, 63, 64, 65, 131])
def test_batches_of_any_length_are_written_once(opened, n):
    here, there = opened(), opened()
    records = [decision(propensity=1 / (i + 1)) for i in range(n)]
    for record in records:
        here.add_decision(record)
    here.flush()
    assert all(same(record, there.decision(record.decision_id)) for record in records)
    with there._database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM decisions")) == n
