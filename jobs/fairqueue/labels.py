"""Order maintenance: sparse integer labels for a changing order, with few writes.

Spark sorts waiting task sets by an ``Int``, and each write of one costs a call into the JVM. Dense ranks
would shift with every insertion. Here neighbours are far apart, a new item takes a label between its
neighbours' labels, and where there is no room a small neighbourhood is spread out again [1]_ [2]_.

Labels are assigned late, when they are asked for: whatever happened to an item in between, only its final
place counts. Items that did not move keep their labels. Among those that moved, a longest increasing
subsequence of the old labels is kept too, so no smaller set of writes gives the new order around the unmoved
items.

References
----------
.. [1] P. Dietz, D. Sleator, "Two Algorithms for Maintaining Order in a List", 1987.
.. [2] M. Bender et al., "Two Simplified Algorithms for Maintaining Order in a List", 2002.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from itertools import pairwise
from typing import TypeAlias

from jobs.fairqueue.errors import InvariantError

LIMIT = 2**30 - 1  # the difference of two labels fits an Int
_STEP = 2**18  # between neighbours at the ends of the order

Key: TypeAlias = tuple[float, int, int]


class OrderLabels:
    """Items in the order of their keys, each with an integer label within ±2**30 in the same order.

    Keys are unique. Moving or inserting costs O(log n) comparisons.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Key, Hashable]] = []  # sorted; keys are unique, so items are not compared
        self._keys: dict[Hashable, Key] = {}
        self._labels: dict[Hashable, int] = {}
        self._told: dict[Hashable, int] = {}  # labels as take_changes gave them last
        self._dirty: set[Hashable] = set()  # items whose place may have changed since labels were assigned
        self._changed: set[Hashable] = set()  # items that were given a label since then
        self.relabelled = 0  # labels written to items that had not moved

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: Hashable) -> bool:
        return item in self._keys

    def place(self, item: Hashable, key: Key) -> None:
        """Insert an item, or move it."""
        old = self._keys.get(item)
        if old == key:
            return
        if old is not None:
            del self._entries[bisect_left(self._entries, (old,))]
        self._keys[item] = key
        insort(self._entries, (key, item))
        self._dirty.add(item)

    def remove(self, item: Hashable) -> None:
        """Take an item out; unknown items are ignored."""
        key = self._keys.pop(item, None)
        if key is None:
            return
        del self._entries[bisect_left(self._entries, (key,))]
        self._labels.pop(item, None)
        self._told.pop(item, None)
        self._dirty.discard(item)
        self._changed.discard(item)

    def label(self, item: Hashable) -> int:
        """Label of an item; KeyError if it is unknown."""
        self._assign()
        return self._labels[item]

    def order(self) -> list[Hashable]:
        """All items, the smallest key first."""
        return [item for _, item in self._entries]

    def take_changes(self) -> dict[Hashable, int]:
        """Labels that are not those of the last call."""
        self._assign()
        labels = {item: self._labels[item] for item in self._changed}
        changes = {item: label for item, label in labels.items() if self._told.get(item) != label}
        self._changed.clear()
        self._told.update(changes)
        return changes

    # ------------------------------------------------------------------ assigning labels

    def _assign(self) -> None:
        if not self._dirty:
            return
        places = sorted(bisect_left(self._entries, (self._keys[item],)) for item in self._dirty)
        if 4 * len(places) > len(self._entries):
            places = list(range(len(self._entries)))  # it may be cheaper to move those that stood still
        for first, last in _runs(places):
            self._keep_most(first, last)
        unlabelled = [place for place in places if self._entries[place][1] not in self._labels]
        for first, last in _runs(unlabelled):
            self._fill(first, last)
        self._dirty.clear()

    def _bounds(self, first: int, last: int) -> tuple[int | None, int | None]:
        """Labels around the places from ``first`` to ``last``; None at an end of the order."""
        below = self._labels.get(self._entries[first - 1][1]) if first else None
        above = self._labels.get(self._entries[last + 1][1]) if last + 1 < len(self._entries) else None
        return below, above

    def _keep_most(self, first: int, last: int) -> None:
        """Drop as few labels as possible so that those left in the run increase, within its bounds."""
        below, above = self._bounds(first, last)
        low = -LIMIT - 1 if below is None else below
        high = LIMIT + 1 if above is None else above
        old: list[tuple[int, Hashable]] = []
        for _, item in self._entries[first : last + 1]:
            label = self._labels.pop(item, None)
            if label is not None and low < label < high:
                old.append((label, item))
        self._labels.update((item, label) for label, item in _longest_increasing(old))

    def _fill(self, first: int, last: int) -> None:
        """Labels for a run of places without one, spreading out neighbours where there is no room."""
        if self._entries[first][1] in self._labels:
            return  # a wider neighbourhood has been spread out meanwhile
        end = len(self._entries) - 1
        count = reach = last - first + 1
        room = 1
        while True:
            below, above = self._bounds(first, last)
            low, step = _spacing(below, above, last - first + 1)
            if step >= room:
                break
            if below is None or above is None:
                first, last, room = 0, end, 1  # the labels have come to a limit: centre them
                continue
            first = self._skip_unlabelled(max(0, first - reach), -1)
            last = self._skip_unlabelled(min(end, last + reach), 1)
            # The wider it is, the roomier it gets: so a wide one is seldom spread out again.
            reach, room = 2 * reach, 2 * (last - first + 1)
        self.relabelled += last - first + 1 - count
        for number, place in enumerate(range(first, last + 1), start=1):
            item = self._entries[place][1]
            self._labels[item] = low + number * step
            self._changed.add(item)

    def _skip_unlabelled(self, place: int, direction: int) -> int:
        """``place``, or beyond it, so that the next place has a label or is outside."""
        beyond = place + direction
        while 0 <= beyond < len(self._entries) and self._entries[beyond][1] not in self._labels:
            place, beyond = beyond, beyond + direction
        return place

    def check(self) -> None:
        """Raise InvariantError unless the labels increase in the order of the keys, within the limits."""
        self._assign()
        if sorted(self._entries) != self._entries or len(self._keys) != len(self._entries):
            raise InvariantError("broken invariant: the order holds each item once, sorted by its key")
        labels = [self._labels[item] for _, item in self._entries]
        if any(low >= high for low, high in pairwise(labels)):
            raise InvariantError("broken invariant: labels increase strictly in the order")
        if any(abs(label) > LIMIT for label in labels):
            raise InvariantError("broken invariant: labels are within ±2**30")
        if len(self._labels) != len(self._entries) or not self._changed <= self._keys.keys():
            raise InvariantError("broken invariant: labels and changes belong to waiting items")


def _spacing(below: int | None, above: int | None, count: int) -> tuple[int, int]:
    """Lower bound and spacing for ``count`` labels between two; None is an end of the order."""
    if below is None and above is None:
        step = min(_STEP, 2 * LIMIT // (count + 1))
        return -(step * (count + 1)) // 2, step
    if below is None:
        assert above is not None
        step = min(_STEP, (above + LIMIT) // count)
        return above - step * (count + 1), step
    if above is None:
        return below, min(_STEP, (LIMIT - below) // count)
    return below, (above - below) // (count + 1)


def _runs(places: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    first = previous = None
    for place in places:
        if first is None:
            first = place
        elif previous is not None and place != previous + 1:
            yield first, previous
            first = place
        previous = place
    if first is not None and previous is not None:
        yield first, previous


def _longest_increasing(pairs: list[tuple[int, Hashable]]) -> list[tuple[int, Hashable]]:
    """A longest subsequence with increasing labels (patience sorting)."""
    if all(left[0] < right[0] for left, right in pairwise(pairs)):
        return pairs
    tops: list[int] = []  # smallest last label of a subsequence of each length
    tops_at: list[int] = []
    before: list[int] = []
    for index, (label, _) in enumerate(pairs):
        length = bisect_left(tops, label)
        before.append(tops_at[length - 1] if length else -1)
        tops[length : length + 1] = [label]
        tops_at[length : length + 1] = [index]
    kept = []
    index = tops_at[-1]
    while index >= 0:
        kept.append(pairs[index])
        index = before[index]
    return kept[::-1]
