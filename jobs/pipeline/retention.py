"""What is removed: outputs that none of the last runs needs, and all that hold a user who was erased.

Kept are the last runs that have data, by when they ran, and those that failed since; the run with the last
end, since the next night goes on from it (:mod:`jobs.pipeline.base`); and what a run goes on from that has no
fingerprints of its own yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.pipeline.collect import SUMMARY, read_summary
from jobs.pipeline.record import as_base, other_runs, output
from jobs.pipeline.step import Context


def clear_away(context: Context) -> dict[str, int]:
    """Remove runs beyond the last ones, and outputs that no run that is kept refers to.

    An output of ``collect`` that was made before a user was erased goes, and so does all that was made from
    it, whatever run has it; a run that needs it makes it anew. What this run has is kept.

    Returns
    -------
    dict
        ``removed_runs`` and ``removed_outputs``.
    """
    records = other_runs(context.work, context.run)
    n_others = context.settings.pipeline.keep_runs - 1
    newest = _next_base(context, records)
    kept, gone, n_kept = list[dict[str, Any]](), list[dict[str, Any]](), 0
    for record in records:
        (kept if n_kept < n_others or record is newest else gone).append(record)
        n_kept += record["steps"].get("collect", {}).get("key") is not None
    for record in gone:
        shutil.rmtree(context.work / "runs" / record["run"], ignore_errors=True)
    collected = context.output("collect")
    erased = None if collected is None or not collected.exists() else _erasures(collected)
    needed = _outputs(context.run.steps)
    this = {"run": context.run.name, "steps": context.run.steps, "base": context.run.base}
    bases = [record["base"] for record in [this, *kept] if _is_unfinished(record)]
    for record in [*kept, *bases]:
        if erased is None or _lacks_none_of(context.work, record, erased):
            needed |= _outputs(record["steps"])
    removed = 0
    for step in (context.work / "steps").glob("*"):
        for path in step.glob("*"):
            if not path.name.startswith(".") and (step.name, path.name.split(".")[0]) not in needed:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                    removed += 1
                else:
                    path.unlink(missing_ok=True)
    return {"removed_runs": len(gone), "removed_outputs": removed}


def _outputs(steps: Mapping[str, Mapping[str, Any]]) -> set[tuple[str, str]]:
    return {(step, str(record["key"])) for step, record in steps.items() if record.get("key") is not None}


def _next_base(context: Context, records: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The other run that the next night goes on from; None where that is this run, or nothing."""
    run = context.run
    if not context.settings.refresh.tolerance:
        return None
    may = [one for one in records if one["until"] is not None and as_base(one["run"], one["steps"])]
    last = max(may, key=lambda record: datetime.fromisoformat(record["until"]), default=None)
    if last is None or run.until is None or as_base(run.name, run.steps) is None:
        return last
    return last if datetime.fromisoformat(last["until"]) > run.until else None


def _is_unfinished(record: Mapping[str, Any]) -> bool:
    """Whether a run still needs what it goes on from."""
    has_base = (record.get("base") or {}).get("run") is not None
    return has_base and as_base(record["run"], record["steps"]) is None


def _lacks_none_of(work: Path, record: Mapping[str, Any], erased: set[tuple[Any, ...]]) -> bool:
    """Whether a run's data were made with all of these erasures carried out."""
    key = record["steps"].get("collect", {}).get("key")
    if key is None:
        return True
    folder = output(work, "collect", key)
    return (folder / SUMMARY).exists() and erased <= _erasures(folder)


def _erasures(folder: Path) -> set[tuple[Any, ...]]:
    erasures: Iterable[Iterable[Any]] = read_summary(folder)["erasures"]
    return {tuple(erasure) for erasure in erasures}
