"""Splits of interactions into training and test parts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.splits import split_at_random, split_by_time
from ppr.errors import DataError, MissingDataError, ParameterError


@given(
    times=st.lists(st.integers(-50, 50), min_size=2, max_size=60).filter(lambda values: len(set(values)) > 1),
    fraction=st.floats(0.01, 0.99),
)
def test_time_split_has_one_cut(times: list[int], fraction: float) -> None:
    table = pa.table({"timestamp": times, "row": range(len(times))})
    try:
        train, test = split_by_time(table, test_fraction=fraction)
    except DataError:
        # The cut falls on the first moment only when that moment alone reaches it.
        n_train = len(times) - max(1, round(fraction * len(times)))
        assert n_train < 1 or sorted(times)[n_train] == min(times)
        return
    assert sorted(train["row"].to_pylist() + test["row"].to_pylist()) == list(range(len(times)))
    assert max(train["timestamp"].to_pylist()) < min(test["timestamp"].to_pylist())
    assert len(test) >= max(1, round(fraction * len(times)))
    for part in (train, test):
        assert part["row"].to_pylist() == sorted(part["row"].to_pylist())


@given(
    users=st.lists(st.sampled_from(["a", "b", "c", "é"]), min_size=1, max_size=80),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_random_split_takes_the_share_of_each_user(users: list[str], fraction: float, seed: int) -> None:
    table = pa.table({"user": users, "row": range(len(users))})
    expected = {user: int(np.floor(fraction * users.count(user))) for user in set(users)}
    if not any(expected.values()):
        with pytest.raises(DataError, match="no user has"):
            split_at_random(table, test_fraction=fraction, seed=seed)
        return
    train, test = split_at_random(table, test_fraction=fraction, seed=seed)
    assert sorted(train["row"].to_pylist() + test["row"].to_pylist()) == list(range(len(users)))
    assert {user: test["user"].to_pylist().count(user) for user in expected} == expected
    assert set(train["user"].to_pylist()) == set(users)
    again, _ = split_at_random(table, test_fraction=fraction, seed=seed)
    assert again == train


def test_random_split_is_uniform() -> None:
    table = pa.table({"user": ["a"] * 10, "row": range(10)})
    counts = np.zeros(10)
    for seed in range(2000):
        counts[split_at_random(table, seed=seed)[1]["row"].to_numpy()] += 1
    # Each row is in the test part with probability .2: binomial, five standard deviations.
    assert np.abs(counts - 400).max() <= 5 * np.sqrt(2000 * 0.2 * 0.8)


def test_bad_input() -> None:
    table = pa.table({"user": ["a", "b"], "timestamp": pa.array([1, None])})
    with pytest.raises(DataError, match="'timestamp' must not be missing"):
        split_by_time(table)
    with pytest.raises(MissingDataError, match="no column 'when'"):
        split_by_time(table, timestamp="when")
    with pytest.raises(MissingDataError, match="no column 'who'"):
        split_at_random(table, user="who")
    with pytest.raises(DataError, match="at least two rows"):
        split_by_time(pa.table({"timestamp": [1]}))
    with pytest.raises(DataError, match="same time"):
        split_by_time(pa.table({"timestamp": [1, 1, 1]}))
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ParameterError, match="'test_fraction'"):
            split_by_time(table, test_fraction=fraction)
        with pytest.raises(ParameterError, match="'test_fraction'"):
            split_at_random(table, test_fraction=fraction)
