"""Geometry of the picture of the slots, against sums over the samples."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.fairqueue.server.page import duration, number
from jobs.fairqueue.server.picture import COLOURS, HEIGHT, WIDTH, Palette, draw

WINDOW_S = 60.0


def area(path: str) -> float:
    """Area within an SVG path of horizontal and vertical lines, by the shoelace formula."""
    x = y = 0.0
    corners = []
    for command, first, second in re.findall(r"([MVH])(-?[\d.]+)(?: (-?[\d.]+))?", path):
        if command == "M":
            x, y = float(first), float(second)
        elif command == "H":
            x = float(first)
        else:
            y = float(first)
        corners.append((x, y))
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


def test_one_user_who_had_half_of_the_slots_half_of_the_time():
    picture = draw([(60.0, {"alice": 2}), (30.0, {})], 4, WINDOW_S, Palette())
    (band,) = picture.bands
    assert (band.user, band.share, picture.idle) == ("alice", pytest.approx(0.25), pytest.approx(0.75))
    assert area(band.path) == pytest.approx(WIDTH * HEIGHT / 4, rel=1e-3)


def test_shares_are_of_the_time_that_was_seen():
    picture = draw([(15.0, {"alice": 4})], 4, WINDOW_S, Palette())
    assert picture.bands[0].share == pytest.approx(1.0)
    assert area(picture.bands[0].path) == pytest.approx(WIDTH * HEIGHT / 4, rel=1e-3)


def test_no_samples_give_an_empty_picture():
    picture = draw([], 4, WINDOW_S, Palette())
    assert (picture.bands, picture.idle) == ((), 0.0)
    assert [level for _, level in picture.levels] == [0, 1, 2, 3, 4]


ages = st.lists(st.floats(0.5, 90), min_size=1, max_size=12, unique=True)


@given(ages, st.randoms(use_true_random=False), st.integers(1, 12))
def test_areas_are_the_core_seconds_of_the_window(ages_s, random, n_users):
    history = [
        (age_s, {f"user{u}": random.randint(0, 3) for u in range(n_users)})
        for age_s in sorted(ages_s, reverse=True)
    ]
    slots = 3 * n_users
    expected: dict[str | None, float] = {}
    for (begin_s, running), end_s in zip(history, [age for age, _ in history[1:]] + [0.0], strict=True):
        held_s = min(begin_s, WINDOW_S) - min(end_s, WINDOW_S)
        for user, count in running.items():
            expected[user] = expected.get(user, 0.0) + count * held_s

    picture = draw(history, slots, WINDOW_S, Palette())
    drawn = {band.user: area(band.path) * WINDOW_S * slots / (WIDTH * HEIGHT) for band in picture.bands}
    named = [user for user in drawn if user is not None]
    expected[None] = math.fsum(value for user, value in expected.items() if user not in named)
    for user, core_s in drawn.items():
        assert core_s == pytest.approx(expected[user], abs=0.03 * slots)  # coordinates have one decimal
    assert len(named) <= COLOURS
    hidden = [value for user, value in expected.items() if user is not None and user not in named]
    assert max(hidden, default=0.0) <= min((expected[user] for user in named), default=0.0) + 1e-6
    assert math.fsum(band.share for band in picture.bands) + picture.idle == pytest.approx(1.0)


def test_colours_stay_with_their_users():
    palette = Palette()
    first = palette.assign(["alice", "bob", "carol"])
    second = palette.assign(["dora", "carol", "alice"])
    assert second["alice"] == first["alice"]
    assert second["carol"] == first["carol"]
    assert second["dora"] == first["bob"]


@given(st.lists(st.lists(st.text("abcdefghij", min_size=1, max_size=1), unique=True), max_size=6))
def test_no_two_users_share_a_colour(rounds):
    palette = Palette()
    for users in rounds:
        colours = palette.assign(users)
        assert list(colours) == users[:COLOURS]
        assert sorted(set(colours.values())) == sorted(colours.values())
        assert all(1 <= colour <= COLOURS for colour in colours.values())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (300, "5 min"),
        (3599, "59 min 59 s"),
        (3660, "1 h 01 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0, "0"), (1.5, "1.5"), (26.94, "26.9"), (123.4, "123"), (12345, "12,345")],
)
def test_numbers(value, text):
    assert number(value) == text
