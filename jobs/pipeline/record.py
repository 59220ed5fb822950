"""Runs of the pipeline on disk: which outputs the steps of a run have, and how each went.

Below ``pipeline.work``,

==============================  ==================================================================
``.lock``                       held by the pipeline at work; says which process that is
``steps/<step>/<key>``          an output; the key is a digest of what it was made from, and how
``runs/<run>/run.json``         the steps of a run: their keys, states, times, and what they found; its base
``runs/<run>/report.json``      everything about the run, and ``report.html``, the same as a page
==============================  ==================================================================

A run is named by the end of its data interval, ``20260131T000000Z``, or ``latest`` where none was given.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from ppr.errors import StoreError
from ppr.manifest import file_sha256, full_disk_is_an_error, sync

STEPS = ("ready", "collect", "graph", "fingerprints", "train", "evaluate", "publish", "report", "notify")
FORMAT = 1
LATEST = "latest"
RECORD = "run.json"
REPORT = "report.json"
PAGE = "report.html"
_KEY_LENGTH = 16
_FIELDS = frozenset({"run", "until", "updated", "steps"})


@dataclass(slots=True)
class Run:
    """A run, as its ``run.json`` has it.

    Attributes
    ----------
    folder
        Where its record is, and its report will be.
    until
        End of the data interval, in UTC, or None for all up to now.
    steps
        What is known of each step that was done: ``state`` (that of its outcome, or ``failed``),
        ``key`` of its output where there is one, ``seconds``, ``facts``.
    base
        What its graph and fingerprints go on from (:mod:`jobs.pipeline.base`); None until that is settled.
    """

    folder: Path
    until: datetime | None
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    base: dict[str, Any] | None = None

    @classmethod
    def open(cls, work: Path, until: datetime | None) -> Run:
        """The run with this end; a new one where there is none yet.

        Raises
        ------
        StoreError
            Its record is damaged.
        """
        folder = work / "runs" / run_name(until)
        end = None if until is None else until.astimezone(UTC)
        record = read_record(folder)
        return cls(folder, end, record.get("steps", {}), record.get("base"))

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    def key(self, step: str) -> str | None:
        """Key of a step's output; None where it has none."""
        return self.steps.get(step, {}).get("key")

    def facts(self, step: str) -> dict[str, Any]:
        """What a step found."""
        facts: dict[str, Any] = self.steps.get(step, {}).get("facts", {})
        return facts

    def done(self, step: str) -> bool:
        """Whether a step was done for this run."""
        return was_done(self.steps, step)

    def keep(self, step: str, record: Mapping[str, Any]) -> None:
        """Record a step; what was made from another output of it is no longer this run's.

        A run without an end goes on from what it had before its data changed.

        Raises
        ------
        ResourceError
            The disk is full or the folder cannot be written.
        """
        if step in self.steps and self.steps[step].get("key") != record.get("key"):
            if step == "collect" and self.until is None:
                self.base = as_base(self.name, self.steps) or self.base
            for later in STEPS[STEPS.index(step) + 1 :]:
                self.steps.pop(later, None)
        self.steps[step] = dict(record)
        self._write()

    def settle(self, base: Mapping[str, Any] | None) -> None:
        """Record what the run goes on from, before anything is made of it; None where bases do not count.

        Raises
        ------
        ResourceError
            The disk is full or the folder cannot be written.
        """
        self.base = None if base is None else dict(base)
        self._write()

    def _write(self) -> None:
        content = {
            "format": FORMAT,
            "run": self.name,
            "until": None if self.until is None else self.until.isoformat(),
            "updated": datetime.now(UTC).isoformat(timespec="microseconds"),
            "base": self.base,
            "steps": self.steps,
        }
        write_json(self.folder / RECORD, content)


def run_name(until: datetime | None) -> str:
    """Name of the run with this end."""
    return LATEST if until is None else f"{until.astimezone(UTC):%Y%m%dT%H%M%SZ}"


def output(work: Path, step: str, key: str) -> Path:
    """Where an output of a step lies, or will."""
    return work / "steps" / step / key


def was_done(steps: Mapping[str, Mapping[str, Any]], step: str) -> bool:
    """Whether a step of a record was done."""
    return steps.get(step, {}).get("state") in ("done", "kept", "skipped", "ready")


def as_base(name: str, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a later run may go on from; None of a run that has no graph and fingerprints."""
    made = ("collect", "graph", "fingerprints")
    if not all(was_done(steps, step) and steps[step].get("key") is not None for step in made):
        return None
    kept = {step: {"key": steps[step]["key"], "facts": steps[step]["facts"]} for step in made[1:]}
    return {"run": name, "steps": {"collect": {"key": steps["collect"]["key"]}, **kept}}


def key_of(step: str, inputs: Mapping[str, Any], how: Mapping[str, Any]) -> str:
    """Key of a step's output, from the checksums of its inputs and the settings that matter."""
    text = json.dumps([step, FORMAT, inputs, how], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def checksums(path: Path | None) -> list[str] | None:
    """Digests of a table's files, hex; None for no table."""
    if path is None:
        return None
    files = sorted(p for p in path.rglob("*.parquet") if p.is_file()) if path.is_dir() else [path]
    return [file_sha256(file) for file in files]


def read_record(folder: Path) -> dict[str, Any]:
    """Record of the run in a folder; empty where there is none.

    Raises
    ------
    StoreError
        It is damaged.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise StoreError(
            f"{path}: not valid JSON ({error}); remove the folder {folder} to start the run anew"
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT or not record.keys() >= _FIELDS:
        raise StoreError(
            f"{path}: 'format' must be {FORMAT}; remove the folder {folder} to start the run anew"
        )
    return record


def other_runs(work: Path, run: Run) -> list[dict[str, Any]]:
    """Records of the other runs, the last updated one first; a damaged one is told of and left out."""
    folders = [path.parent for path in (work / "runs").glob(f"*/{RECORD}") if path.parent != run.folder]
    records = []
    for folder in folders:
        try:
            records.append(read_record(folder))
        except StoreError as error:
            structlog.get_logger().warning("the record of another run is left out", reason=str(error))
    return sorted(records, key=lambda record: str(record["updated"]), reverse=True)


def run_before(work: Path, run: Run) -> dict[str, Any] | None:
    """Record of the run with the last end before this one's that collected data; None where there is none.

    For a run without an end, that is the last one updated of those that have one.
    """
    before = [
        record
        for record in other_runs(work, run)
        if record["until"] is not None and record["steps"].get("collect", {}).get("key") is not None
    ]
    if run.until is not None:
        before = [record for record in before if datetime.fromisoformat(record["until"]) < run.until]
    return max(before, key=lambda record: str(record["run"]), default=None)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    working = path.with_name(f".{path.name}.part")
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with working.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, sort_keys=True, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        working.replace(path)
        sync(path.parent)
