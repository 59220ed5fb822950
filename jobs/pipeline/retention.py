"""What is removed: outputs that none of the last runs needs, and all that hold a user who was erased."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.pipeline.collect import SUMMARY, read_summary
from jobs.pipeline.record import other_runs, output
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
    keep_runs = context.settings.pipeline.keep_runs
    gone = records[keep_runs - 1 :]
    for record in gone:
        shutil.rmtree(context.work / "runs" / record["run"], ignore_errors=True)
    collected = context.output("collect")
    erased = None if collected is None or not collected.exists() else _erasures(collected)
    needed = _outputs(context.run.steps)
    for record in records[: keep_runs - 1]:
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
