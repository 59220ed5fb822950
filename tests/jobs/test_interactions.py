"""A person's own interactions: every accepted form gives the same table."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.interactions import read_interactions
from ppr.errors import DataError, MissingDataError

ROWS = [("ann", "7", 2.0, 30), ("bob", "8", 1.0, 10), ("ann", "8", 0.5, 20)]


def rows_of(table: pa.Table) -> list[tuple[object, ...]]:
    return list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def write_csv(path: Path, header: str, rows: list[tuple[object, ...]], separator: str = ",") -> Path:
    lines = [header, *(separator.join(map(str, row)) for row in rows)]
    text = "\n".join(line for line in lines if line) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_text_with_header(tmp_path: Path, name: str) -> None:
    table = read_interactions(write_csv(tmp_path / name, "user_id,item_id,weight,Timestamp", ROWS))
    assert table.column_names == ["user", "item", "weight", "timestamp"]
    assert rows_of(table) == ROWS


def test_parquet_with_integer_keys_and_times(tmp_path: Path) -> None:
    times = [datetime(2025, 1, day, tzinfo=UTC) for day in (3, 1, 2)]
    pq.write_table(pa.table({"user": [1, 2, 1], "item": [7, 8, 8], "time": times}), tmp_path / "x.parquet")
    table = read_interactions(tmp_path / "x.parquet")
    assert rows_of(table) == [("1", "7", times[0]), ("2", "8", times[1]), ("1", "8", times[2])]


def test_text_without_header_has_no_times(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.tsv", "", [(1, 7), (2, 8)], "\t")
    table = read_interactions(path)
    assert table.column_names == ["user", "item"]
    assert rows_of(table) == [("1", "7"), ("2", "8")]


def test_iso_times_are_ordered_as_times(tmp_path: Path) -> None:
    rows = [("a", "x", "2025-01-02T03:04:05"), ("b", "x", "2024-12-31T00:00:00")]
    times = read_interactions(write_csv(tmp_path / "x.csv", "user,item,date", rows))["timestamp"]
    assert pa.types.is_timestamp(times.type)
    assert times[1].as_py() < times[0].as_py()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="no such file"):
        read_interactions(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="row 3: 'weight' must be positive and finite"):
        read_interactions(write_csv(tmp_path / "w.csv", "user,item,weight", [("a", "x", 1), ("b", "x", -1)]))
    with pytest.raises(DataError, match=r"times must be numbers or ISO 8601 \(got 'soon'\)"):
        read_interactions(write_csv(tmp_path / "t.csv", "user,item,time", [("a", "x", "soon")]))
    with pytest.raises(DataError):
        read_interactions(write_csv(tmp_path / "e.csv", "user,item,weight", []))
