"""What the data of a run is like, and how it differs from the last run's.

:func:`describe` counts, :func:`drift` compares. Of shares p now and q before, such as those of the LLMs
among all choices, the population stability index is told,

    PSI = Σ (p - q) ln(p / q),

a symmetric Kullback-Leibler divergence; by custom, below .1 is steady and above .25 a shift that somebody
should look at. As the data of all time hardly moves from one night to the next, shares are also told of the
newest :data:`RECENT_DAYS` days. Thresholds colour the page of the run and decide nothing; only the gate's
limit on counts that collapse does.

The description, equal for equal rows in any order; a part without rows is None::

    interactions   rows, users, items
                   first, last      times (ISO 8601), None where no row has one
                   per_user, per_item   quantiles of the number of rows, at QUANTILES
                   new_users        share of the users of the newest days who are new; None without times
                   shares           {"popularity": shares of rows by how popular their item is}
                   recent           {"rows", "shares"} of the newest days, None without times
    choices        the same with queries in the place of items, per_user and per_query, and
                   shares           {"llms": ..., "tasks": ...}, tasks where the rows have any

The comparison::

    counts      {"interactions.rows": {"now", "before", "ratio", "level"}, ...}; ratio None where before is 0
    shares      {"choices.llms": {"now", "before", "psi", "level"}, "choices.llms, newest": ..., ...}
    quantiles   {"interactions.per_user": {"now", "before", "level"}, ...}
    new_users   {"choices": {"now", "before"}, ...}
    level       the highest of all: "steady", "notable" or "strong"
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

Level = Literal["steady", "notable", "strong"]
LEVELS: tuple[Level, ...] = ("steady", "notable", "strong")
RECENT_DAYS = 7
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
PSI_LEVELS = (0.1, 0.25)
CHANGE_LEVELS = (0.2, 0.5)
"""Relative changes of a count, up or down, from which it is notable, and strong."""
POPULARITY = {"top 1 %": 0.01, "next 4 %": 0.05, "next 15 %": 0.2, "other 80 %": 1.0}
"""Bins of the items, the most popular first: the share of the items up to which each reaches."""
_LEAST_SHARE = 1e-4  # of a bin that is empty on one side, so that the index is finite
_MOST_SHARES = 50  # bins told; the smallest are told together
_PARTS = {
    "interactions": {"user": "users", "item": "items"},
    "choices": {"user": "users", "query": "queries"},
}


def describe(interactions: Sequence[Path], choices: Sequence[Path]) -> dict[str, Any]:
    """Count tables; see the top of this module.

    Holds the columns that it counts in memory.

    Parameters
    ----------
    interactions
        Parquet files whose rows count together: the training's and those held out. Columns ``user`` and
        ``item``, perhaps ``timestamp``.
    choices
        The same with ``user``, ``query`` and ``llm``, perhaps ``task`` and ``timestamp``.

    Returns
    -------
    dict
        JSON values only.
    """
    return {
        "interactions": _describe(_read(interactions, ("user", "item", "timestamp")), "interactions"),
        "choices": _describe(_read(choices, ("user", "query", "llm", "task", "timestamp")), "choices"),
    }


def drift(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two descriptions; see the top of this module. JSON values only."""
    result: dict[str, Any] = {"counts": {}, "shares": {}, "quantiles": {}, "new_users": {}}
    for part, keys in _PARTS.items():
        mine, theirs = now[part], before[part]
        for name in ("rows", *keys.values()):
            if mine is not None or theirs is not None:
                counts = (0 if told is None else told[name] for told in (mine, theirs))
                result["counts"][f"{part}.{name}"] = _change(*counts)
        if mine is None or theirs is None:
            continue
        for name, shares in mine["shares"].items():
            if name in theirs["shares"]:
                result["shares"][f"{part}.{name}"] = _shift(shares, theirs["shares"][name])
        if mine["recent"] is not None and theirs["recent"] is not None:
            newest = theirs["recent"]["shares"]
            for name, shares in mine["recent"]["shares"].items():
                if shares and newest.get(name):
                    result["shares"][f"{part}.{name}, newest"] = _shift(shares, newest[name])
        for key in keys:
            result["quantiles"][f"{part}.per_{key}"] = _spread(mine[f"per_{key}"], theirs[f"per_{key}"])
        if mine["new_users"] is not None and theirs["new_users"] is not None:
            result["new_users"][part] = {"now": mine["new_users"], "before": theirs["new_users"]}
    found = [each["level"] for kind in ("counts", "shares", "quantiles") for each in result[kind].values()]
    result["level"] = max(found, key=LEVELS.index, default=LEVELS[0])
    return result


def psi(now: Iterable[float], before: Iterable[float]) -> float:
    """Population stability index of shares of the same bins; an empty bin counts as a share of 1e-4."""
    index = 0.0
    for p, q in zip(now, before, strict=True):
        p, q = max(p, _LEAST_SHARE), max(q, _LEAST_SHARE)
        index += (p - q) * math.log(p / q)
    return index


def _read(paths: Sequence[Path], names: Sequence[str]) -> pa.Table | None:
    """Columns of all files together, as far as they have them; None where they have no rows."""
    tables = []
    for path in paths:
        file = pq.ParquetFile(path)
        tables.append(file.read([name for name in names if name in file.schema_arrow.names]))
    if not sum(len(table) for table in tables):
        return None
    return pa.concat_tables(tables, promote_options="permissive").combine_chunks()


def _describe(rows: pa.Table | None, part: str) -> dict[str, Any] | None:
    if rows is None:
        return None
    codes = {name: _codes(rows[name]) for name in _PARTS[part]}
    user, thing = codes.values()
    seconds = _seconds(rows["timestamp"]) if "timestamp" in rows.column_names else None
    counts = {key: np.bincount(values) for key, values in codes.items()}
    bins = _bins(rows, thing, counts, part)
    told: dict[str, Any] = {"rows": len(rows)}
    for key, count in counts.items():
        told[_PARTS[part][key]] = int(count.size)
        told[f"per_{key}"] = np.quantile(count, QUANTILES).tolist()
    told["first"], told["last"] = _range(seconds)
    told["shares"] = {name: _shares(labels, at) for name, (labels, at) in bins.items()}
    told["new_users"], told["recent"] = None, None
    if seconds is not None and (timed := ~np.isnan(seconds)).any():
        begin = float(np.nanmax(seconds)) - RECENT_DAYS * 86_400.0
        recent = timed & (seconds > begin)
        told["new_users"] = _new_users(user, seconds, timed, begin)
        told["recent"] = {
            "rows": int(recent.sum()),
            "shares": {name: _shares(labels, at[recent]) for name, (labels, at) in bins.items()},
        }
    return told


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Number of each row's value among the distinct ones."""
    encoded = column.combine_chunks().dictionary_encode()
    codes: NDArray[np.int64] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _seconds(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Seconds since 1970, NaN where there is no time."""
    values = column.combine_chunks()
    scale = 1.0
    if pa.types.is_timestamp(values.type):
        values, scale = values.cast(pa.timestamp("us", values.type.tz)).cast(pa.int64()), 1e-6
    seconds: NDArray[np.float64] = pc.fill_null(values.cast(pa.float64(), safe=False), np.nan).to_numpy()
    return seconds * scale


def _bins(
    rows: pa.Table, thing: NDArray[np.int64], counts: Mapping[str, NDArray[np.int64]], part: str
) -> dict[str, tuple[list[str], NDArray[np.int64]]]:
    """Names of bins, and the bin of each row, -1 for none."""
    if part == "interactions":
        # Items that are equally popular share their mean rank: one bin, whatever the order of the rows.
        _, level, n_items = np.unique(-counts["item"], return_inverse=True, return_counts=True)
        rank = (np.cumsum(n_items) - n_items / 2) / n_items.sum()
        place = np.digitize(rank, list(POPULARITY.values())[:-1])[level]
        return {"popularity": (list(POPULARITY), place[thing])}
    found = {}
    for name, column in (("llms", "llm"), ("tasks", "task")):
        if column not in rows.column_names:
            continue
        encoded = rows[column].combine_chunks().dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        found[name] = ([str(label) for label in encoded.dictionary.to_pylist()], codes.astype(np.int64))
    return found


def _shares(labels: Sequence[str], at: NDArray[np.int64]) -> dict[str, float]:
    """Share of the rows in each bin, by name; the smallest of very many are told together as ``others``."""
    counts = np.bincount(at[at >= 0], minlength=len(labels))
    total = counts.sum()
    if not total:
        return {}
    by_name = dict(sorted(zip(labels, (counts / total).tolist(), strict=True)))
    if labels == list(POPULARITY):
        by_name = {name: by_name[name] for name in labels}
    if len(by_name) <= _MOST_SHARES:
        return by_name
    largest = sorted(by_name, key=lambda name: (-by_name[name], name))[: _MOST_SHARES - 1]
    rest = 1.0 - math.fsum(by_name[name] for name in largest)
    return {name: share for name, share in by_name.items() if name in largest} | {"others": max(rest, 0.0)}


def _range(seconds: NDArray[np.float64] | None) -> tuple[str | None, str | None]:
    if seconds is None or np.isnan(seconds).all():
        return None, None
    first, last = (
        datetime.fromtimestamp(float(end), UTC).isoformat(timespec="seconds")
        for end in (np.nanmin(seconds), np.nanmax(seconds))
    )
    return first, last


def _new_users(
    user: NDArray[np.int64], seconds: NDArray[np.float64], timed: NDArray[np.bool_], begin: float
) -> float:
    """Share of the users with a row after ``begin`` whose first row is after it, too."""
    first = np.full(int(user.max()) + 1, np.inf)
    last = np.full(first.size, -np.inf)
    np.minimum.at(first, user[timed], seconds[timed])
    np.maximum.at(last, user[timed], seconds[timed])
    first[user[~timed]] = -np.inf  # was there at some time
    active = last > begin
    return float((first[active] > begin).mean())


def _change(now: int, before: int) -> dict[str, Any]:
    ratio = now / before if before else None
    moved = 1.0 if ratio is None else abs(ratio - 1.0)
    return {"now": now, "before": before, "ratio": ratio, "level": _level(moved, CHANGE_LEVELS)}


def _shift(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, Any]:
    names = list(dict.fromkeys((*before, *now)))
    both = [{name: shares.get(name, 0.0) for name in names} for shares in (now, before)]
    index = psi(both[0].values(), both[1].values())
    return {"now": both[0], "before": both[1], "psi": index, "level": _level(index, PSI_LEVELS)}


def _spread(now: Sequence[float], before: Sequence[float]) -> dict[str, Any]:
    """Compare quantiles by the largest relative change of the middle ones."""
    middle = [i for i, q in enumerate(QUANTILES) if 0.1 <= q <= 0.9]
    moved = max(abs(now[i] - before[i]) / max(before[i], 1.0) for i in middle)
    return {"now": list(now), "before": list(before), "level": _level(moved, CHANGE_LEVELS)}


def _level(value: float, limits: tuple[float, float]) -> Level:
    return LEVELS[sum(value > limit for limit in limits)]
