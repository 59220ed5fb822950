"""Feedback: accepted once, in whatever order, and what choices follow from it."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from router.errors import ParameterError
from router.service.store import (
    DecisionRecord,
    Feedback,
    IdempotencyConflictError,
    UnknownDecisionError,
    new_id,
    period_of,
)

NOW = 1_764_000_000.0  # 24 November 2025, in UTC


def decided(store, **changed) -> str:
    record = DecisionRecord(
        decision_id=new_id(),
        created_at=NOW,
        user="anna",
        release="r1",
        llm="brief",
        propensity=1.0,
        source="trained",
        task="code",
        query_hash="hash",
        query_embedding=np.array([1.0, 2.0], dtype=np.float32),
        offered=("brief", "kind"),
        key_id="k",
    )
    store.add_decision(replace(record, **changed))
    return str(changed.get("decision_id", record.decision_id))


def chosen(store, user="anna") -> list[tuple[str, float]]:
    return [(event.llm, event.at) for event in store.events_of(user)]


def test_a_choice_has_the_query_and_the_offer_of_its_decision(store):
    accepted = store.add_feedback(Feedback(decided(store), thumbs=1), now=NOW + 5)
    assert not accepted.replayed
    (event,) = store.events_of("anna")
    assert (event.llm, event.task, event.offered, event.query_key, event.at) == (
        "brief",
        "code",
        ("brief", "kind"),
        "hash",
        NOW + 5,
    )
    np.testing.assert_array_equal(event.query_embedding, np.array([1, 2], dtype=np.float32))
    assert event.query_embedding.dtype == np.float32


def test_what_was_taken_instead_is_the_choice_and_counts_as_offered(store):
    store.add_feedback(Feedback(decided(store, query_text="why?"), llm="third"))
    (event,) = store.events_of("anna")
    assert (event.llm, event.offered, event.query_key) == ("third", ("brief", "kind", "third"), "why?")


def test_a_choice_without_decision_has_no_query(store):
    store.add_feedback(Feedback(user="ben", llm="kind"), now=NOW)
    (event,) = store.events_of("ben")
    assert (event.llm, event.query_embedding, event.task, event.offered, event.query_key) == (
        "kind",
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("given", "is_choice"),
    [
        ({"thumbs": 1}, True),
        ({"thumbs": -1}, False),
        ({"thumbs": 1, "score": 0.5}, True),
        ({"score": 0.5}, True),
        ({"score": 0.49}, False),
        ({"llm": "kind"}, True),
        ({"llm": "kind", "thumbs": -1}, False),
        ({"cost_usd": 0.1, "latency_ms": 5.0}, False),
        ({"items": (("book", 1.0),)}, False),
    ],
)
def test_what_is_a_choice(store, given, is_choice):
    store.add_feedback(Feedback(decided(store), **given))
    assert bool(store.events_of("anna")) == is_choice


def test_the_order_of_arrival_makes_no_difference(store):
    """Two decisions, judged twice each: what was judged last counts, however it arrives."""
    for number, order in enumerate(itertools.permutations(range(4))):
        user = f"user{number}"
        first, second = (decided(store, user=user) for _ in range(2))
        told = [
            Feedback(first, thumbs=1, occurred_at=NOW + 1),
            Feedback(first, thumbs=-1, occurred_at=NOW + 2),
            Feedback(second, thumbs=-1, occurred_at=NOW + 3),
            Feedback(second, llm="kind", occurred_at=NOW + 4),
        ]
        for place in order:
            store.add_feedback(told[place], now=NOW + 100 + place)
        assert chosen(store, user) == [("kind", NOW + 4)]


def test_a_time_in_the_future_is_now(store):
    store.add_feedback(Feedback(decided(store), thumbs=1, occurred_at=NOW + 1e9), now=NOW)
    assert chosen(store) == [("brief", NOW)]


def test_events_are_the_last_ones_oldest_first(store):
    for second in (3, 1, 2, 4):
        store.add_feedback(Feedback(decided(store), thumbs=1, occurred_at=NOW + second), now=NOW + 9)
    assert [at - NOW for _, at in chosen(store)] == [1, 2, 3, 4]
    assert [event.at - NOW for event in store.events_of("anna", limit=2)] == [3, 4]
    assert store.events_of("nobody") == []


def test_replayed_feedback_is_accepted_once(opened):
    here, there = opened(), opened()
    given = Feedback(decided(here), thumbs=1, items=(("book", 2.0), ("album", 1.0)))
    first = here.add_feedback(given, key_id="k", idempotency_key="once", now=NOW)
    reordered = replace(given, items=given.items[::-1])
    again = there.add_feedback(reordered, key_id="k", idempotency_key="once", now=NOW + 60)
    assert (again.feedback_id, again.replayed) == (first.feedback_id, True)
    assert len(here.events_of("anna")) == 1
    with pytest.raises(IdempotencyConflictError, match="used before"):
        there.add_feedback(replace(given, thumbs=-1), key_id="k", idempotency_key="once")
    other = replace(given, thumbs=-1)
    other_client = there.add_feedback(other, key_id="other", of_any_key=True, idempotency_key="once")
    assert not other_client.replayed


def test_a_race_for_an_idempotency_key_has_one_winner(opened):
    workers = [opened(), opened()]
    given = Feedback(decided(workers[0]), thumbs=1)
    workers[0].flush()

    def tell(number: int) -> tuple[str, bool]:
        accepted = workers[number % 2].add_feedback(given, idempotency_key="once")
        return accepted.feedback_id, accepted.replayed

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(tell, range(16)))
    assert len({feedback_id for feedback_id, _ in results}) == 1
    assert sum(not replayed for _, replayed in results) == 1
    assert workers[0].users_changed_since(0)[0] == len(workers[0].users_changed_since(0)[1]) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "'user' is needed"),
        ({"user": "ben", "thumbs": 1}, "'llm' is needed"),
        ({"user": "b\0"}, "'user' must be text"),
        ({"user": "ben", "llm": ""}, "'llm' must be text"),
        ({"user": "ben", "llm": "kind", "thumbs": 0}, "'thumbs' must be -1 or 1"),
        ({"user": "ben", "llm": "kind", "score": 1.1}, "'score' must be finite, at least 0, at most 1"),
        ({"user": "ben", "cost_usd": -1.0}, "'cost_usd'"),
        ({"user": "ben", "latency_ms": float("nan")}, "'latency_ms'"),
        ({"user": "ben", "occurred_at": float("inf")}, "'occurred_at'"),
        ({"user": "ben", "items": (("book", 0.0),)}, "'weight' must be positive"),
        ({"user": "ben", "items": (("", 1.0),)}, "'item' must be text"),
    ],
)
def test_feedback_that_breaks_a_rule_is_refused(store, given, message):
    with pytest.raises(ParameterError, match=message):
        store.add_feedback(Feedback(**given))
    assert store.users_changed_since(0)[0] == 0


def test_feedback_on_no_decision_or_on_somebody_elses_is_refused(store):
    with pytest.raises(UnknownDecisionError, match="no decision '0000"):
        store.add_feedback(Feedback("0" * 32, thumbs=1))
    with pytest.raises(ParameterError, match="must be the user of the decision"):
        store.add_feedback(Feedback(decided(store), user="ben", thumbs=1))
    assert store.users_changed_since(0)[0] == 0


def test_the_decision_of_another_key_is_as_good_as_none(store):
    given = Feedback(decided(store), llm="kind", thumbs=1, cost_usd=1e6)
    with pytest.raises(UnknownDecisionError, match="no decision"):
        store.add_feedback(given, key_id="other")
    assert store.users_changed_since(0)[0] == 0
    assert store.spent_usd(["user:anna", "key:k"], "2025-11") == {"user:anna": 0.0, "key:k": 0.0}
    store.add_feedback(given, key_id="other", of_any_key=True)
    store.add_feedback(Feedback(decided(store, key_id=None), thumbs=1), key_id="other")
    assert len(store.events_of("anna")) == 2


def test_a_reported_cost_is_spent_up_to_a_hundred_times_what_was_expected(store):
    for reported_usd, spent_usd in ((0.2, 0.2), (1e6, 0.2 + 1.0)):
        accepted = store.add_feedback(Feedback(decided(store, cost_usd=0.01), cost_usd=reported_usd))
        assert accepted.booked_usd == pytest.approx(min(reported_usd, 1.0))
        assert store.spent_usd(["key:k"], "2025-11") == {"key:k": pytest.approx(spent_usd)}


def test_a_decision_for_nobody_may_be_claimed(store):
    store.add_feedback(Feedback(decided(store, user=None), user="ben", thumbs=1))
    assert len(store.events_of("ben")) == 1


def test_feedback_takes_its_decision_along(opened):
    """It does not wait for the buffer, and another worker sees both."""
    here, there = opened(), opened()
    here.add_feedback(Feedback(decided(here), thumbs=1))
    (event,) = there.events_of("anna")
    assert event.task == "code"


def test_items_add_up_after_a_time(store):
    for at, items in ((100.0, (("book", 1.0),)), (200.0, (("book", 2.0), ("pen", 1.0))), (300.0, ())):
        store.add_feedback(Feedback(user="anna", llm="kind", items=items, occurred_at=at))
    assert store.items_of("anna") == {"book": 3.0, "pen": 1.0}
    assert store.items_of("anna", since=100.0) == {"book": 2.0, "pen": 1.0}
    assert store.items_of("ben") == {}


def test_workers_follow_whose_feedback_came(opened):
    here, there = opened(), opened()
    cursor = there.users_changed_since(0)[0]
    assert there.users_changed_since(cursor) == (cursor, [])
    for user in ("anna", "ben", "anna"):
        here.add_feedback(Feedback(user=user, llm="kind"))
    here.add_feedback(Feedback(user="carl", latency_ms=5.0))  # no judgement
    here.add_feedback(Feedback(user="dora", items=(("book", 1.0),)))
    after, users = there.users_changed_since(cursor)
    assert users == ["anna", "ben", "dora"]
    assert after == there.users_changed_since(0)[0] > cursor
    assert there.users_changed_since(after) == (after, [])


def test_a_reported_cost_is_spent_once(store):
    decision = decided(store)
    for usd in (0.25, 0.5):
        store.add_feedback(Feedback(decision, cost_usd=usd))
    store.add_feedback(Feedback(decided(store, endpoint="chat"), cost_usd=4.0))
    store.add_feedback(Feedback(user="anna", cost_usd=8.0))
    store.add_feedback(Feedback(decided(store, key_id=None), cost_usd=1.0), key_id="teller")
    for unit, name in (("day", "2025-11-24"), ("month", "2025-11")):
        period = period_of(NOW, unit)
        assert period == name
        spent = store.spent_usd(["user:anna", "key:k", "key:teller"], period)
        assert spent == {"user:anna": 1.25, "key:k": 0.25, "key:teller": 1.0}
