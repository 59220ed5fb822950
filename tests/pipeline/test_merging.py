"""How many rows came late, against a version that looks at one after the other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.pipeline.deliveries import CHOICES, INTERACTIONS
from jobs.pipeline.merging import _SAME, count_late
from jobs.pipeline.rows import SCHEMAS

START = datetime(2026, 1, 1, tzinfo=UTC)


def table(kind: str, n_rows: int, rng: np.random.Generator) -> pa.Table:
    """Rows of few users and times, so that many agree; one in six without a time."""
    columns = {
        name: pa.array([f"{name}{i}" for i in rng.integers(6, size=n_rows)], pa.large_string())
        for name in _SAME[kind][:-1]
    }
    hours = [
        None if rng.random() < 1 / 6 else START + timedelta(hours=int(h))
        for h in rng.integers(8, size=n_rows)
    ]
    given = {**columns, "timestamp": pa.array(hours, SCHEMAS[kind].field("timestamp").type)}
    nothing = {field.name: pa.nulls(n_rows, field.type) for field in SCHEMAS[kind]}
    return pa.table({**nothing, **given}, schema=SCHEMAS[kind])


@pytest.mark.parametrize("kind", [INTERACTIONS, CHOICES])
@pytest.mark.parametrize("seed", range(5))
def test_rows_that_came_late(kind: str, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    parts = {}
    for name, n_rows in (("new", 90), ("old", 60)):
        parts[name] = table(kind, n_rows, rng)
        (tmp_path / name).mkdir()
        pq.write_table(parts[name][:40], tmp_path / name / f"{kind}.parquet")
        pq.write_table(parts[name][40:], tmp_path / name / f"held_out_{kind}.parquet")
    end = START + timedelta(hours=5)
    known = {tuple(row[name] for name in _SAME[kind]) for row in parts["old"].to_pylist()}
    expected = sum(
        row["timestamp"] is not None
        and row["timestamp"] < end
        and tuple(row[name] for name in _SAME[kind]) not in known
        for row in parts["new"].to_pylist()
    )
    assert expected > 0
    assert count_late(kind, tmp_path / "new", tmp_path / "old", end) == expected
