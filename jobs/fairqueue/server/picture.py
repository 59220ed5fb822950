"""Geometry of the picture "who had the slots": areas of running tasks by user, stacked over time.

Only numbers are made here; the page's template writes the SVG, and escapes the names in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

COLOURS = 6
"""Users with a colour of their own; the rest share one."""

OTHERS = "others"

WIDTH, HEIGHT = 960.0, 240.0
_BINS = 120


@dataclass(frozen=True, slots=True)
class Band:
    """Area of one user.

    Parameters
    ----------
    user
        Its name; None for the rest together.
    colour
        Number of its colour from 1; None for the rest.
    share
        Part of the slots' time that it had.
    path
        SVG path of its area.
    """

    user: str | None
    colour: int | None
    share: float
    path: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Stacked areas, the first at the bottom.

    Parameters
    ----------
    bands
        Areas of the users.
    idle
        Part of the slots' time, since the first sample, that nobody had.
    levels
        Grid lines as (height in the picture, tasks).
    times
        Grid lines as (position in the picture, seconds before now).
    """

    bands: tuple[Band, ...]
    idle: float
    levels: tuple[tuple[float, int], ...]
    times: tuple[tuple[float, float], ...]


class Palette:
    """Colours that stay with their users from one picture to the next, as long as these are shown."""

    def __init__(self) -> None:
        self._colours: dict[str, int] = {}

    def assign(self, users: Iterable[str]) -> dict[str, int]:
        """Colours, from 1, of at most :data:`COLOURS` users."""
        shown = list(users)[:COLOURS]
        kept = {user: self._colours[user] for user in shown if user in self._colours}
        free = iter(sorted(set(range(1, COLOURS + 1)) - set(kept.values())))
        colours = {user: kept[user] if user in kept else next(free) for user in shown}
        self._colours = colours
        return colours


def draw(
    history: Sequence[tuple[float, Mapping[str, int]]], slots: int, window_s: float, palette: Palette
) -> Picture:
    """Picture of the last ``window_s`` seconds.

    Parameters
    ----------
    history
        (seconds before now, running tasks by user), oldest first. A sample holds until the next.
    slots
        Tasks that can run at once.
    window_s
        Seconds shown.
    palette
        Colours of the users.
    """
    tasks = _mean_tasks(history, window_s)
    totals = {user: sum(row) for user, row in tasks.items()}
    colours = palette.assign(sorted(totals, key=lambda user: (-totals[user], user)))
    rest = [row for user, row in tasks.items() if user not in colours]
    rows: list[tuple[str | None, list[float]]] = [(user, tasks[user]) for user in sorted(colours)]
    if rest:
        rows.append((None, [math.fsum(column) for column in zip(*rest, strict=True)]))

    floor = [0.0] * _BINS
    top = max([float(slots), *(math.fsum(column) for column in zip(*(row for _, row in rows), strict=True))])
    seen_s = min(window_s, history[0][0]) if history else 0.0
    capacity = max(slots * seen_s / window_s * _BINS, 1e-9)
    bands = []
    for user, row in rows:
        ceiling = [low + value for low, value in zip(floor, row, strict=True)]
        share = math.fsum(row) / capacity
        colour = None if user is None else colours[user]
        bands.append(Band(user, colour, share, _area(floor, ceiling, top)))
        floor = ceiling
    idle = max(0.0, 1.0 - math.fsum(band.share for band in bands)) if seen_s else 0.0
    step = _round_step(top / 4, whole=True)
    levels = tuple((_y(level, top), level) for level in range(0, int(top) + 1, int(step)))
    spacing_s = _round_step(window_s / 6, whole=False)
    times = tuple(
        (WIDTH * (1 - i * spacing_s / window_s), i * spacing_s) for i in range(int(window_s / spacing_s) + 1)
    )
    return Picture(tuple(bands), idle, levels, times)


def _mean_tasks(
    history: Sequence[tuple[float, Mapping[str, int]]], window_s: float
) -> dict[str, list[float]]:
    """Mean running tasks of each user in each of the window's equal parts, oldest first."""
    width_s = window_s / _BINS
    tasks: dict[str, list[float]] = {}
    for (age_s, running), (end_s, _) in pairwise([*history, (0.0, {})]):
        begin, end = ((window_s - min(age, window_s)) / width_s for age in (age_s, end_s))
        for i in range(int(begin), min(math.ceil(end), _BINS)):
            part = min(end, i + 1) - max(begin, i)
            for user, count in running.items():
                if count:
                    tasks.setdefault(user, [0.0] * _BINS)[i] += count * part
    return tasks


def _area(floor: Sequence[float], ceiling: Sequence[float], top: float) -> str:
    """Path along the ceiling's steps to the right, and back along the floor's."""
    x = [WIDTH * i / _BINS for i in range(_BINS + 1)]
    there = " ".join(f"V{_y(ceiling[i], top):.1f}H{x[i + 1]:.1f}" for i in range(_BINS))
    back = " ".join(f"V{_y(floor[i], top):.1f}H{x[i]:.1f}" for i in reversed(range(_BINS)))
    return f"M0 {_y(floor[0], top):.1f}{there} {back}Z"


def _y(tasks: float, top: float) -> float:
    return HEIGHT * (1 - tasks / top)


def _round_step(value: float, *, whole: bool) -> float:
    """Next of 1, 2, 5, 10, 20, ... for counts, or of 1, 5, 10, 30, 60, ... seconds for times."""
    if whole:
        power = 10.0 ** math.floor(math.log10(max(value, 1.0)))
        return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value)
    return next((step for step in (1, 5, 10, 30, 60, 300, 600, 1800) if step >= value), 3600.0)
