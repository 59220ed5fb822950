"""Rate limits and budgets over several workers, against a plain count."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from router.errors import ParameterError

MINUTE = 60.0


@pytest.mark.parametrize("limit", [1, 7, 150])
def test_small_limits_are_exact_over_all_workers(opened, limit):
    """The oracle counts arrivals per bucket and minute of the clock."""
    rng = random.Random(limit)
    workers = [opened() for _ in range(3)]
    allowed: Counter[tuple[str, int]] = Counter()
    arrivals = sorted(rng.uniform(0, 3 * MINUTE) for _ in range(10 * limit + 60))
    for now in arrivals:
        bucket = rng.choice(["a", "b"])
        expected = allowed[bucket, int(now // MINUTE)] < limit
        taken = rng.choice(workers).take(bucket, limit, now)
        assert taken.allowed == expected
        allowed[bucket, int(now // MINUTE)] += taken.allowed
        if not taken.allowed:
            assert taken.remaining == 0
            assert (now + taken.retry_after_s) % MINUTE == pytest.approx(0, abs=1e-6)
    assert max(allowed.values()) == limit


def test_large_limits_are_never_exceeded_and_almost_reached(opened):
    """Of 4 workers at most 3 hold a lease of a hundredth that they do not use up."""
    rng = random.Random(0)
    workers, limit = [opened() for _ in range(4)], 1000
    for minute in range(3):
        allowed = 0
        refused_at = None
        for _ in range(3000):
            taken = rng.choice(workers).take("a", limit, minute * MINUTE + 1)
            allowed += taken.allowed
            if not taken.allowed and refused_at is None:
                refused_at = allowed
        assert allowed == limit
        assert refused_at is not None
        assert refused_at >= 0.96 * limit


def test_remaining_counts_down(store):
    assert [store.take("a", 3, 5.0).remaining for _ in range(4)] == [2, 1, 0, 0]
    assert store.take("a", 3, MINUTE).allowed


def test_a_clock_that_is_behind_takes_from_the_later_minute(opened):
    ahead, behind = opened(), opened()
    assert ahead.take("a", 2, MINUTE).allowed
    assert behind.take("a", 2, MINUTE - 1).allowed
    refused = behind.take("a", 2, MINUTE - 1)
    assert not refused.allowed
    assert refused.retry_after_s == MINUTE + 1
    assert not ahead.take("a", 2, MINUTE + 1).allowed


def test_threads_of_all_workers_together_stay_within_the_limit(opened):
    workers = [opened() for _ in range(2)]
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda i: workers[i % 2].take("a", 50, 1.0).allowed, range(120)))
    assert sum(taken) == 50


def test_a_rate_limit_must_be_positive(store):
    with pytest.raises(ParameterError, match=r"'per_minute' must be positive \(got 0\)"):
        store.take("a", 0, 1.0)


def test_budgets_as_a_plain_count_has_them(opened):
    """Random reservations, settlements and releases; the oracle adds up in a dictionary."""
    rng = random.Random(1)
    workers = [opened() for _ in range(2)]
    budgets = {"user:anna": 5.0, "user:ben": 3.0, "key:k": 6.0, "key:free": None}
    spent: defaultdict[str, float] = defaultdict(float)
    held: dict[str, tuple[list[str], float]] = {}
    outcomes = Counter()
    for _ in range(250):
        worker = rng.choice(workers)
        if held and rng.random() < 0.6:
            reservation, (subjects, reserved) = held.popitem()
            paid = 0.0 if rng.random() < 0.5 else rng.choice([0.25, 0.5, 1.0])
            assert worker.settle(reservation, paid) if paid else worker.release(reservation)
            for subject in subjects:
                spent[subject] += paid - reserved
        else:
            subjects = [rng.choice(["user:anna", "user:ben"]), rng.choice(["key:k", "key:free"])]
            usd = rng.choice([0.25, 0.5, 1.0])
            fits = all(budgets[s] is None or spent[s] + usd <= budgets[s] for s in subjects)
            reservation = worker.reserve({s: budgets[s] for s in subjects}, "2026-11", usd)
            assert (reservation is not None) == fits
            outcomes[fits] += 1
            if reservation is not None:
                held[reservation] = subjects, usd
                for subject in subjects:
                    spent[subject] += usd
        assert worker.spent_usd(list(budgets), "2026-11") == {s: pytest.approx(spent[s]) for s in budgets}
    assert min(outcomes[True], outcomes[False]) > 10


def test_a_budget_is_never_exceeded_by_threads_of_two_workers(opened):
    workers = [opened() for _ in range(2)]

    def spend(number: int) -> float:
        worker, subjects = workers[number % 2], {f"user:{number % 3}": 10.0, "key:k": 12.0}
        reservation = worker.reserve(subjects, "day", 1.0)
        if reservation is None:
            return 0.0
        assert worker.spent_usd(["key:k"], "day")["key:k"] <= 12.0 + 1e-9
        worker.settle(reservation, 0.75)
        return 0.75

    with ThreadPoolExecutor(8) as threads:
        total = sum(threads.map(spend, range(60)))
    assert workers[0].spent_usd(["key:k"], "day") == {"key:k": pytest.approx(total)}
    assert 11.0 < total <= 12.0


def test_periods_and_reservations_are_apart(store):
    first = store.reserve({"user:anna": 1.0}, "2026-11-24", 1.0, now=0.0)
    assert first is not None
    assert store.reserve({"user:anna": 1.0}, "2026-11-24", 0.1, now=1.0) is None
    assert store.reserve({"user:anna": 1.0}, "2026-11-25", 1.0, now=1.0) is not None


def test_what_a_killed_worker_had_reserved_counts_as_spent(store):
    reserved = store.reserve({"user:anna": 1.0}, "2026-11", 0.75, now=0.0)
    assert reserved is not None
    assert store.reserve({"user:anna": 1.0}, "2026-11", 0.5, now=86400.0) is None
    assert store.spent_usd(["user:anna"], "2026-11") == {"user:anna": 0.75}
    assert store.settle(reserved, 0.25)  # late, but known
    assert store.spent_usd(["user:anna"], "2026-11") == {"user:anna": 0.25}


def test_a_reservation_is_settled_once(store):
    reservation = store.reserve({"user:anna": 1.0, "key:k": None}, "day", 0.5)
    assert reservation is not None
    assert store.settle(reservation, 0.125)
    assert not store.settle(reservation, 0.125)
    assert store.spent_usd(["user:anna", "key:k", "key:other"], "day") == {
        "user:anna": 0.125,
        "key:k": 0.125,
        "key:other": 0.0,
    }
    with pytest.raises(ParameterError, match="'usd'"):
        store.reserve({"user:anna": 1.0}, "day", -0.5)
