"""From a metric of each user to what is told of it: means, intervals, differences, groups of users.

The unit is the user: a user's rows tell the same tastes again and again, so that only users are draws of
their own. Intervals are percentiles of a bootstrap over users, and those of a difference are of the same
users' paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from router.evaluate import activity_thirds

Doubles = NDArray[np.float64]
CANDIDATE, CURRENT, POPULARITY = "candidate", "current", "popularity"
_RESAMPLES = 1000
_BATCH_CELLS = 1_000_000  # of resamples × users held at a time


def mean_by_user(values: ArrayLike, users: ArrayLike, n_users: int) -> Doubles:
    """Mean of each user's rows, float64 [u]; NaN for one whose rows are all NaN, or who has none."""
    numbers, owners = np.asarray(values, dtype=np.float64), np.asarray(users)
    there = ~np.isnan(numbers)
    n = np.bincount(owners[there], minlength=n_users)
    sums = np.bincount(owners[there], numbers[there], minlength=n_users)
    means = np.full(n_users, np.nan)
    np.divide(sums, n, out=means, where=n > 0)
    return means


def compare(of: Mapping[str, Doubles], groups: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Figures of a metric.

    Parameters
    ----------
    of
        The metric of each user, float64 [u], by whose it is: ``candidate``, ``popularity``, perhaps
        ``current`` and further ones. A user whom one of them has NaN for is left out of all.
    groups
        Name of each user's group [u].
    seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``users``, and ``{"mean", "low", "high"}`` of each; ``difference`` of candidate and current, None
        without one, and ``over_popularity`` of candidate and popularity; ``groups``: by group the same of
        candidate and current.
    """
    there = ~np.isnan(np.stack(list(of.values()))).any(axis=0)
    values = {name: array[there] for name, array in of.items()}
    names = np.asarray(groups, dtype=np.str_)[there]
    result: dict[str, Any] = {"users": int(there.sum())}
    result |= {name: interval(array, seed) for name, array in values.items()}
    result["difference"] = _difference(values, CURRENT, seed)
    result["over_popularity"] = _difference(values, POPULARITY, seed)
    result["groups"] = {
        str(group): _of_group({name: array[names == group] for name, array in values.items()}, seed)
        for group in np.unique(names)
    }
    return result


def activity_groups(history: ArrayLike) -> list[str]:
    """Name of each user's group by what is known of it: none, then thirds, with their ranges."""
    counts = np.asarray(history, dtype=np.int64)
    thirds = iter(activity_thirds(counts[counts > 0]))
    return [next(thirds) if count else "0 none" for count in counts.tolist()]


def interval(values: Doubles, seed: int) -> dict[str, float | None] | None:
    """Mean with its 95 % bootstrap interval, whose ends are None with a single user; None without any."""
    if not values.size:
        return None
    mean = float(values.mean())
    if values.size < 2 or not np.isfinite(values).all():
        return {"mean": mean if np.isfinite(mean) else None, "low": None, "high": None}
    from scipy.stats import bootstrap  # half a second

    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_CELLS // values.size),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"mean": mean, "low": float(found.low), "high": float(found.high)}


def _difference(values: Mapping[str, Doubles], other: str, seed: int) -> dict[str, float | None] | None:
    return interval(values[CANDIDATE] - values[other], seed) if other in values else None


def _of_group(values: Mapping[str, Doubles], seed: int) -> dict[str, Any]:
    shown = {name: interval(values[name], seed) for name in (CANDIDATE, CURRENT) if name in values}
    return {
        "users": int(values[CANDIDATE].size),
        **shown,
        "difference": _difference(values, CURRENT, seed),
    }
