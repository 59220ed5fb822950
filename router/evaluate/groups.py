"""Figures by groups of users: how active they are, what kind of person, known in training or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from router.errors import ParameterError

_95_PERCENT = 1.96


@dataclass(frozen=True, slots=True)
class GroupFigure:
    """A metric in a group of users.

    Attributes
    ----------
    n_users
        Users with a value.
    mean, low, high
        Mean over users and its 95 % interval, by the normal approximation; NaN ends with a single user.
    """

    n_users: int
    mean: float
    low: float
    high: float


def by_group(values: ArrayLike, groups: Sequence[str]) -> dict[str, GroupFigure]:
    """Mean of a metric in each group of users, in order of the groups' names.

    Parameters
    ----------
    values
        Metric of each user, float [u]; NaN where a user has none, which leaves the user out.
    groups
        Name of each user's group [u].

    Raises
    ------
    ParameterError
        The two differ in length.
    """
    metric, names = np.asarray(values, dtype=np.float64), np.asarray(groups, dtype=np.str_)
    if metric.shape != names.shape:
        raise ParameterError(f"'groups' must have {metric.size} entries (got {names.size})")
    known = ~np.isnan(metric)
    return {str(name): _figure(metric[known & (names == name)]) for name in np.unique(names[known])}


def activity_thirds(n_choices: ArrayLike) -> tuple[str, ...]:
    """Name of each user's third by number of choices, with its range, such as ``1 few (20-33)``.

    Users of equal numbers are in the same group, so that groups may differ in size, or be fewer.

    Parameters
    ----------
    n_choices
        int [u].
    """
    counts = np.asarray(n_choices, dtype=np.int64)
    if not counts.size:
        return ()
    first, second = np.quantile(counts, (1 / 3, 2 / 3), method="lower")
    third = np.digitize(counts, (first, second), right=True)
    labels = {}
    for i, word in enumerate(("few", "some", "many")):
        inside = counts[third == i]
        if inside.size:
            labels[i] = f"{i + 1} {word} ({inside.min()}-{inside.max()})"
    return tuple(labels[i] for i in third.tolist())


def _figure(values: np.ndarray) -> GroupFigure:
    mean = float(values.mean())
    if values.size == 1:
        return GroupFigure(1, mean, float("nan"), float("nan"))
    reach = _95_PERCENT * float(values.std(ddof=1)) / values.size**0.5
    return GroupFigure(int(values.size), mean, mean - reach, mean + reach)
