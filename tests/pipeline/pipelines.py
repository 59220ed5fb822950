"""Small pipelines on a small market, and their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.demo_data import Market, MarketSizes, make_market
from jobs.settings import Settings

MAY, JUNE = datetime(2025, 5, 1, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC)
SIZES = MarketSizes(n_users=60, n_items=45, n_interactions=700, n_choices=500)
QUICK = {
    "fingerprints": {"restart_prob": 0.3, "n_walks": 300, "threads": 1},
    "router": {"encoder": "hashing", "n_factors": 2, "n_tastes": 3, "n_steps": 6, "device": "cpu"},
    "gate": {"min_users": 2, "popularity_floor": False},
}


def small_market(seed: int = 0) -> Market:
    return make_market(seed, SIZES)


def deliver(market: Market, folder: Path, cuts: tuple[str, ...] = ()) -> dict[str, Any]:
    """Write a market as deliveries, a file for what lies between two of the times; gives their settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("interactions", market.interactions), ("choices", market.llm_choices)):
        (folder / name).mkdir(exist_ok=True)
        ends = [pa.scalar(datetime.fromisoformat(cut).replace(tzinfo=UTC)) for cut in cuts]
        for number, (first, last) in enumerate(zip([None, *ends], [*ends, None])):
            rows = table
            if first is not None:
                rows = rows.filter(pc.greater_equal(rows["timestamp"], first))
            if last is not None:
                rows = rows.filter(pc.less(rows["timestamp"], last))
            pq.write_table(rows, folder / name / f"{number}.parquet")
    pq.write_table(market.llms, folder / "llms.parquet")
    return {
        "interactions": [str(folder / "interactions")],
        "choices": [str(folder / "choices")],
        "llms": folder / "llms.parquet",
    }


def settings_of(
    out: Path, deliveries: Mapping[str, Any], *, tolerance: float = 1.0, **further: Any
) -> Settings:
    """Settings of a small pipeline, in which most rows move by more than the usual tolerance each night."""
    pipeline = {"work": out / "work", "releases": out / "releases", **deliveries, **further}
    return Settings(**{**QUICK, "pipeline": pipeline, "refresh": {"tolerance": tolerance}})


def digests(folder: Path) -> dict[str, str]:
    """Digest of each file below a folder, hidden ones left out."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def states(result: dict[str, Any]) -> dict[str, str]:
    return {step: told["state"] for step, told in result["steps"].items()}


def report_of(out: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "work" / "runs" / name / "report.json").read_text())
    return content
