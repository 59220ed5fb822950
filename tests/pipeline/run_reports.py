"""Reports of runs, as ``report.json`` has them, from random numbers: what the page of a run has to show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.pipeline.drift import describe, drift
from jobs.pipeline.evaluation_figures import activity_groups, compare
from jobs.pipeline.gate import Facts, decide
from jobs.settings import GateSettings

END = datetime(2026, 1, 31, tzinfo=UTC)
CURRENT = "20260130T020000Z-0a1b2c3d4e5f"
PUBLISHED = "20260131T020000Z-5f4e3d2c1b0a"
LLMS = (
    "tiny-quick",
    "middle-kind",
    "large-thorough",
    "code-wise",
    "a-model-whose-name-is-too-long-to-be-shown",
)
_LEVELS = {"log_likelihood": -0.9, "accuracy": 0.6, "ndcg": 0.2, "recall": 0.3}


def evaluation(
    *, gain: float = 0.02, first: bool = False, n_users: int = 180, seed: int = 0
) -> dict[str, Any]:
    """What :func:`jobs.pipeline.evaluation.evaluate` might find, with a gain in all metrics."""
    rng = np.random.default_rng(seed)
    groups = activity_groups(rng.geometric(0.1, n_users) - 1)
    users = rng.normal(0, 0.15, n_users)
    metrics = {}
    for name, level in _LEVELS.items():
        current = level + users + rng.normal(0, 0.05, n_users)
        of = {
            "candidate": current + gain + rng.normal(0, 0.08, n_users),
            "current": current,
            "popularity": level - 0.2 + 0.5 * users,
        }
        if name in ("log_likelihood", "accuracy"):
            of["user_task"] = level - 0.08 + users
        if first:
            del of["current"]
        metrics[name] = compare(of, groups, seed=0)
    return {
        "k": 20,
        "seed": 0,
        "current": None if first else CURRENT,
        "current_unusable": None,
        "ranks_items": {"candidate": True, "current": None if first else True},
        "choices": {
            "rows": 3 * n_users - 7,
            "users": n_users,
            "left_out": {"thumbs_down": 7, "beyond_the_sample": 0, "unforeseeable": 2},
            "sources": {"candidate": {"trained": n_users}},
            "not_finite": {"candidate": 0},
            "metrics": {name: metrics[name] for name in ("log_likelihood", "accuracy")},
        },
        "items": {
            "rows": 3 * n_users,
            "users": n_users,
            "left_out": {"beyond_the_sample": 0, "unknown_items": 3, "seen_by_candidate": 11},
            "unknown_users": {"candidate": 0},
            "metrics": {name: metrics[name] for name in ("ndcg", "recall")},
        },
    }


def description(folder: Path, *, scale: float = 1.0, tilt: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """A description of random tables; ``tilt`` moves choices to the first LLM."""
    rng = np.random.default_rng(seed)
    n = int(4000 * scale)
    ages = pa.array([END - timedelta(minutes=int(m)) for m in rng.exponential(20_000, n)])
    users = [f"u{int(i)}" for i in rng.exponential(60, n)]
    paths = [folder / "interactions.parquet", folder / "choices.parquet"]
    folder.mkdir(parents=True, exist_ok=True)
    items = [f"i{int(i)}" for i in rng.exponential(90, n)]
    pq.write_table(pa.table({"user": users, "item": items, "timestamp": ages}), paths[0])
    chosen = np.where(rng.random(n) < tilt, 0, rng.integers(len(LLMS), size=n))
    choices = {
        "user": users,
        "query": [f"q{i}" for i in rng.integers(300, size=n)],
        "task": [("code", "poems", "facts")[i] for i in rng.integers(3, size=n)],
        "llm": [LLMS[i] for i in chosen],
        "timestamp": ages,
    }
    pq.write_table(pa.table(choices), paths[1])
    return describe(paths[:1], paths[1:])


def report(folder: Path, *, gain: float = 0.02, first: bool = False, tilt: float = 0.1) -> dict[str, Any]:
    """Report of a run that went through, published if the gate says so."""
    before = None if first else description(folder / "before")
    now = description(folder / "now", scale=1.1, tilt=tilt, seed=1)
    moved = None if before is None else drift(now, before)
    judged = evaluation(gain=gain, first=first)
    decision = decide(judged, GateSettings(), Facts(drift=moved)).to_json()
    done = "published" if decision["publish"] else "refused"
    release = PUBLISHED if decision["publish"] else None if first else CURRENT
    versions = [version for version in (None if first else CURRENT, release) if version]
    return {
        "run": "20260131T000000Z",
        "until": END.isoformat(),
        "started": (END + timedelta(hours=2)).isoformat(),
        "seconds": 48.21,
        "state": done,
        "error": None,
        "deliveries": [
            {"name": f"interactions/2026-01-{day}.parquet", "kind": "interactions", "rows": 1210, "later": 0}
            | {"erased": 3, "kept": 1207}
            for day in (29, 30)
        ]
        + [{"name": "feedback", "kind": "choices", "rows": 310, "later": 12, "erased": 0, "kept": 298}],
        "collected": {
            "tables": {
                "interactions": {"training": 2300, "held_out": 110, "repeated": 4, "repeated_feedback": 0},
                "choices": {"training": 290, "held_out": 8, "repeated": 0, "repeated_feedback": 0},
            }
        },
        "description": now,
        "drift": moved,
        "before": None if first else "20260130T000000Z",
        "fingerprints": fingerprints(first=first),
        "evaluation": judged,
        "decision": decision,
        "release": release,
        "steps": [
            _step("collect", 1.8, 210e6, 3e6),
            _step("graph", 2.1, 260e6, 5e6),
            _step("fingerprints", 9.4, 420e6, 41e6),
            _step("train", 31.0, 890e6, 12e6),
            _step("evaluate", 3.6, 640e6, 9e3),
            _step("publish", 0.4, 320e6, None),
        ],
        "releases": [
            {
                "version": version,
                "created": f"2026-01-3{i}T02:00:00+00:00",
                "bytes": 58_000_000 + i,
                "current": version == release,
            }
            for i, version in enumerate(dict.fromkeys(versions))
        ],
    }


def fingerprints(*, first: bool = False) -> dict[str, Any]:
    """What a night that refreshes tells of its fingerprints, or one without any before it."""
    if first:
        why = "made in full: there is no run before this one"
        return {"base": None, "why": why, "rows": 70_839, "recomputed": 70_839, "rows_changed": None} | {
            **{
                "nodes": 70_839,
                "removed_nodes": 0,
                "tolerance": 0.05,
                "largest_bound": 0.0,
                "mean_bound": 0.0,
            }
        }
    changed = {"recomputed": 991, "rows_changed": 1187, "largest_bound": 0.04988, "mean_bound": 0.00312}
    nodes = {"nodes": 70_851, "removed_nodes": 12}
    return {"base": "20260130T000000Z", "why": None, "rows": 70_839, "tolerance": 0.05, **changed, **nodes}


def failed(folder: Path) -> dict[str, Any]:
    """Report of a run whose training failed."""
    made = report(folder)
    made |= {"state": "failed", "evaluation": None, "decision": None, "release": None}
    made["error"] = {
        "step": "train",
        "type": "DataError",
        "text": "events.parquet: row 3: <unknown> LLM 'x' & \"y\"; there are $a, b",
    }
    for step in made["steps"]:
        if step["step"] == "train":
            step |= {"state": "failed", "bytes": None}
        elif step["step"] in ("evaluate", "publish"):
            step |= {"state": "not run", "seconds": None, "peak_bytes": None, "bytes": None}
    return made


def nothing_new(folder: Path) -> dict[str, Any]:
    """Report of a run whose candidate is what is served."""
    made = report(folder)
    decision = decide({}, GateSettings(), Facts(candidate_is_current=True)).to_json()
    made |= {"state": "nothing new", "evaluation": None, "decision": decision, "release": CURRENT}
    for step in made["steps"]:
        step |= {"state": "kept", "seconds": 0.01}
    return made


def _step(name: str, seconds: float, peak: float, size: float | None) -> dict[str, Any]:
    made = None if size is None else int(size)
    return {"step": name, "state": "done", "seconds": seconds, "peak_bytes": int(peak), "bytes": made}
