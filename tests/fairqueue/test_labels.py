"""Order labels: always in the order of the keys, and few of them written."""

from __future__ import annotations

import random
from collections.abc import Hashable
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.fairqueue.labels import LIMIT, OrderLabels

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["place", "place", "place", "remove", "take"]), st.integers(0, 30), st.floats(0, 9)
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(ACTIONS)
def test_labels_follow_the_keys(actions: list[tuple[str, int, float]]) -> None:
    """What was written so far, and nothing else, sorts the items by their keys."""
    labels = OrderLabels()
    keys: dict[Hashable, float] = {}
    written: dict[Hashable, int] = {}
    for action, item, key in [*actions, ("take", 0, 0.0)]:
        if action == "place":
            labels.place(item, (key, 0, item))
            keys[item] = key
        elif action == "remove":
            labels.remove(item)
            keys.pop(item, None)
            written.pop(item, None)
        else:
            changes = labels.take_changes()
            assert all(written.get(item) != label for item, label in changes.items())
            written.update(changes)
            expected = sorted(keys, key=lambda item: (keys[item], item))
            assert labels.order() == expected == sorted(written, key=written.__getitem__)
        labels.check() if action == "take" else None
    assert len(labels) == len(keys)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.permutations(range(7)), st.integers(2, 7))
def test_fewest_writes(order: list[int], moved: int) -> None:
    """As many labels are kept as the longest increasing subsequence allows; found here by trying all."""
    labels = OrderLabels()
    for item in range(7):
        labels.place(item, (float(item), 0, item))
    old = labels.take_changes()
    for place, item in enumerate(order):
        labels.place(item, (100.0 + place, 0, item))
    longest = max(
        len(kept) for size in range(8) for kept in combinations(order, size) if list(kept) == sorted(kept)
    )
    changes = labels.take_changes()
    assert len(changes) == 7 - longest
    assert sorted({**old, **changes}, key={**old, **changes}.__getitem__) == order


def test_unmoved_items_are_not_written() -> None:
    labels = OrderLabels()
    for item in range(1000):
        labels.place(item, (float(item), 0, item))
    labels.take_changes()
    for item in range(100, 110):  # moved, but past nobody
        labels.place(item, (item + 0.5, 0, item))
    assert labels.take_changes() == {}
    labels.place(500, (2.5, 0, 500))
    assert set(labels.take_changes()) == {500}


@pytest.mark.parametrize("where", ["front", "back", "between", "descending between"])
def test_no_order_of_insertion_costs_much(where: str) -> None:
    """Items that go always to the same place: room is made, by less than two writes each."""
    labels = OrderLabels()
    labels.place("low", (0.0, 0, -1))
    labels.place("high", (1.0, 0, -2))
    writes = 0
    count = 5000
    for item in range(count):
        key = {
            "front": -float(item),
            "back": 2.0 + item,
            "between": item / count,
            "descending between": 1 - (item + 1) / (count + 1),
        }[where]
        labels.place(item, (key, 0, item))
        writes += len(labels.take_changes())
    labels.check()
    assert writes < 2 * count, writes


def test_days_of_a_moving_queue() -> None:
    """A hundred waiting items, always some served and some added: labels stay within the limits."""
    generator = random.Random(3)
    labels = OrderLabels()
    writes = 0
    for item in range(100_000):
        labels.place(item, (item + 50 * generator.random(), 0, item))
        if item >= 100:
            labels.remove(item - 100)
        writes += len(labels.take_changes())
        if item % 1000 == 0:
            labels.check()
    assert all(abs(labels.label(item)) <= LIMIT for item in labels.order())
    assert writes < 1.02 * 100_000, writes


def test_a_label_that_comes_back_is_not_told_again() -> None:
    """An item that moves away and back between two calls may get its old label again."""
    labels = OrderLabels()
    for number in range(3):
        labels.place(number, (float(number), number, 0))
    told = labels.take_changes()
    labels.place(2, (-1.0, 2, 0))
    assert labels.label(2) < told[0]
    labels.place(2, (2.0, 2, 0))
    assert labels.label(2) == told[2]
    assert labels.take_changes() == {}
    labels.remove(2)
    labels.place(2, (2.0, 2, 0))
    assert labels.take_changes() == {2: told[2]}  # it is another stay in the queue


def test_labels_told_are_always_those_in_use() -> None:
    labels, told = OrderLabels(), dict[Hashable, int]()
    generator = random.Random(5)
    for number in range(300):
        labels.place(number, (generator.random(), number, 0))
        for moved in generator.choices(range(number + 1), k=3):
            labels.place(moved, (generator.random(), moved, 0))
            labels.label(moved)
        changes = labels.take_changes()
        assert all(told.get(item) != label for item, label in changes.items())
        told.update(changes)
        assert told == {item: labels.label(item) for item in range(number + 1)}
