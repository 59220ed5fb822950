"""Descriptions against counting in plain Python; comparisons against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.pipeline.drift import POPULARITY, QUANTILES, describe, drift, psi

END = datetime(2026, 1, 31, tzinfo=UTC)
TIME = pa.timestamp("us", "UTC")


def _write(path: Path, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    fields = {name: types.get(name, pa.large_string()) for name in rows[0]}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), path)
    return path


def _interactions(seed: int, n: int, users: int = 30, items: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "user": f"u{int(users * rng.random() ** 2)}",
            "item": f"i{int(items * rng.random() ** 3)}",
            "timestamp": END - timedelta(seconds=int(rng.integers(40 * 86_400))),
        }
        for _ in range(n)
    ]


def _choices(seed: int, n: int, favourite: str = "brief") -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "user": f"u{rng.integers(20)}",
            "query": f"question {rng.integers(15)}",
            "llm": favourite if rng.random() < 0.5 else ("brief", "kind", "rare")[rng.integers(3)],
            "task": ("code", "poems")[rng.integers(2)],
            "timestamp": END - timedelta(seconds=int(rng.integers(40 * 86_400))),
        }
        for _ in range(n)
    ]


def _quantiles(counts: Counter[str]) -> list[float]:
    ordered = sorted(counts.values())
    found = []
    for q in QUANTILES:
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
    return found


def _popularity(rows: list[dict[str, Any]], counts: Counter[str]) -> dict[str, float]:
    """Bins by the mean rank of all items that are equally popular."""
    ordered = sorted(counts.values(), reverse=True)
    shares = dict.fromkeys(POPULARITY, 0.0)
    for row in rows:
        places = [i for i, count in enumerate(ordered) if count == counts[row["item"]]]
        rank = (statistics.mean(places) + 0.5) / len(ordered)
        shares[next(name for name, end in POPULARITY.items() if rank < end)] += 1 / len(rows)
    return shares


@pytest.mark.parametrize("seed", [0, 1])
def test_interactions_are_counted_as_in_plain_python(tmp_path: Path, seed: int) -> None:
    rows = _interactions(seed, 400)
    parts = [_write(tmp_path / f"{i}.parquet", rows[i::2], timestamp=TIME) for i in range(2)]
    told = describe(parts, [])["interactions"]
    users, items = (Counter(row[name] for row in rows) for name in ("user", "item"))
    assert (told["rows"], told["users"], told["items"]) == (400, len(users), len(items))
    assert told["per_user"] == pytest.approx(_quantiles(users))
    assert told["per_item"] == pytest.approx(_quantiles(items))
    times = [row["timestamp"] for row in rows]
    assert (told["first"], told["last"]) == (min(times).isoformat(), max(times).isoformat())
    assert told["shares"]["popularity"] == pytest.approx(_popularity(rows, items))
    begin = max(times) - timedelta(days=7)
    newest = [row for row in rows if row["timestamp"] > begin]
    old = {row["user"] for row in rows if row["timestamp"] <= begin}
    active = {row["user"] for row in newest}
    assert told["new_users"] == pytest.approx(len(active - old) / len(active))
    assert told["recent"]["rows"] == len(newest)


def test_choices_are_counted_as_in_plain_python(tmp_path: Path) -> None:
    rows = _choices(0, 300)
    told = describe([], [_write(tmp_path / "c.parquet", rows, timestamp=TIME)])["choices"]
    queries = Counter(row["query"] for row in rows)
    assert (told["rows"], told["queries"]) == (300, len(queries))
    assert told["per_query"] == pytest.approx(_quantiles(queries))
    for name, column in (("llms", "llm"), ("tasks", "task")):
        counts = Counter(row[column] for row in rows)
        assert told["shares"][name] == pytest.approx({key: n / 300 for key, n in counts.items()})
    begin = max(row["timestamp"] for row in rows) - timedelta(days=7)
    newest = Counter(row["llm"] for row in rows if row["timestamp"] > begin)
    shares = {key: n / newest.total() for key, n in newest.items()}
    assert {k: v for k, v in told["recent"]["shares"]["llms"].items() if v} == pytest.approx(shares)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(40)))
def test_order_and_files_make_no_difference(tmp_path: Path, order: list[int]) -> None:
    rows = _interactions(3, 40)
    whole = _write(tmp_path / "whole.parquet", rows, timestamp=TIME)
    halves = [
        _write(tmp_path / f"{i}.parquet", [rows[j] for j in part], timestamp=TIME)
        for i, part in enumerate((order[:25], order[25:]))
    ]
    assert json.dumps(describe(halves, [])) == json.dumps(describe([whole], []))


def test_tables_without_times_or_rows(tmp_path: Path) -> None:
    plain = _write(tmp_path / "plain.parquet", [{"user": "a", "item": "b"}, {"user": "c", "item": "b"}])
    told = describe([plain], [])
    assert told["choices"] is None
    assert told["interactions"]["first"] is None
    assert told["interactions"]["new_users"] is None
    assert told["interactions"]["recent"] is None
    assert told["interactions"]["per_item"] == [2.0] * len(QUANTILES)
    empty = tmp_path / "empty.parquet"
    pq.write_table(pq.read_table(plain).slice(0, 0), empty)
    assert describe([empty], []) == {"interactions": None, "choices": None}
    timed = _write(tmp_path / "timed.parquet", [{"user": "a", "item": "d", "timestamp": END}], timestamp=TIME)
    told = describe([plain, timed], [])["interactions"]  # a column that one of two files lacks
    assert (told["rows"], told["last"], told["recent"]["rows"]) == (3, END.isoformat(), 1)
    assert told["new_users"] == 0.0  # a row without a time may be older
    json.dumps(told, allow_nan=False)


def test_many_llms_are_told_by_the_largest(tmp_path: Path) -> None:
    rows = [{"user": "u", "query": "q", "llm": f"llm-{i:02d}"} for i in range(80) for _ in range(i + 1)]
    shares = describe([], [_write(tmp_path / "c.parquet", rows)])["choices"]["shares"]["llms"]
    assert len(shares) == 50
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    assert shares["others"] == pytest.approx(sum(range(1, 32)) / len(rows))


def test_the_stability_index() -> None:
    assert psi([0.5, 0.5], [0.5, 0.5]) == 0.0
    assert psi([0.6, 0.4], [0.5, 0.5]) == pytest.approx(0.1 * math.log(1.2) - 0.1 * math.log(0.8))
    assert psi([0.2, 0.8], [0.7, 0.3]) == pytest.approx(psi([0.7, 0.3], [0.2, 0.8]))
    assert 0 < psi([1.0, 0.0], [0.9, 0.1]) < math.inf


def test_equal_descriptions_are_steady(tmp_path: Path) -> None:
    told = describe(
        [_write(tmp_path / "i.parquet", _interactions(0, 200), timestamp=TIME)],
        [_write(tmp_path / "c.parquet", _choices(0, 200), timestamp=TIME)],
    )
    found = drift(told, told)
    assert found["level"] == "steady"
    assert {change["ratio"] for change in found["counts"].values()} == {1.0}
    assert {shift["psi"] for shift in found["shares"].values()} == {0.0}
    assert set(found["shares"]) == {
        f"{name}{when}"
        for name in ("interactions.popularity", "choices.llms", "choices.tasks")
        for when in ("", ", newest")
    }


def test_a_shift_is_told_where_it_is(tmp_path: Path) -> None:
    before, now = (
        describe([], [_write(tmp_path / f"{llm}.parquet", _choices(0, 400, llm), timestamp=TIME)])
        for llm in ("brief", "kind")
    )
    found = drift(now, before)
    assert found["shares"]["choices.llms"]["level"] == "strong"
    assert found["shares"]["choices.tasks"]["level"] == "steady"
    assert found["counts"]["choices.rows"] == {"now": 400, "before": 400, "ratio": 1.0, "level": "steady"}
    assert found["level"] == "strong"
    llms = found["shares"]["choices.llms"]
    assert llms["psi"] == pytest.approx(psi(llms["now"].values(), llms["before"].values()))


def test_counts_that_fall_are_told_by_their_ratio(tmp_path: Path) -> None:
    rows = _interactions(0, 400)
    before = describe([_write(tmp_path / "a.parquet", rows, timestamp=TIME)], [])
    now = describe([_write(tmp_path / "b.parquet", rows[:100], timestamp=TIME)], [])
    change = drift(now, before)["counts"]["interactions.rows"]
    assert change == {"now": 100, "before": 400, "ratio": 0.25, "level": "strong"}
    assert drift(before, now)["counts"]["interactions.rows"]["level"] == "strong"
    slightly = describe([_write(tmp_path / "c.parquet", rows[:300], timestamp=TIME)], [])
    assert drift(slightly, before)["counts"]["interactions.rows"]["level"] == "notable"


def test_a_part_that_comes_or_goes(tmp_path: Path) -> None:
    items = [_write(tmp_path / "i.parquet", _interactions(0, 50), timestamp=TIME)]
    choices = [_write(tmp_path / "c.parquet", _choices(0, 50), timestamp=TIME)]
    both, one = describe(items, choices), describe(items, [])
    gone = drift(one, both)["counts"]["choices.rows"]
    assert (gone["now"], gone["before"], gone["ratio"], gone["level"]) == (0, 50, 0.0, "strong")
    come = drift(both, one)["counts"]["choices.rows"]
    assert (come["ratio"], come["level"]) == (None, "strong")
    json.dumps(drift(both, one), allow_nan=False)
