"""What a run goes on from: the graph and the fingerprints of an earlier run, its *base*.

The graph keeps the base's dense ids (:mod:`ppr.lineage`), so that the fingerprints need a new row only where
the change matters (:mod:`ppr.refresh`). The base is part of what a step's output is made from. It is chosen
once, written into ``run.json`` before anything is made of it, and stays: a run that was killed, or that is
done again, gives the same bits, whatever other runs there are by then.

The base is the run with the last end before this one's that has a graph and fingerprints of the same
settings; of a run without an end, what that run had before its data changed. A run is made in full instead

- where there is no such run, and where the settings changed since;
- where too many of its nodes were removed, whose ids are never given again: then ids begin anew;
- where the base's stores are gone or damaged and this run's are not there yet (where only the fingerprints
  are, after the graph was made, only the rows are made in full; that is recorded, and stays, too);
- and with ``[refresh] tolerance = 0``, as if there were no bases at all: then none is recorded either.

A single step with other settings than the run's base was made with goes on from nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.pipeline.record import as_base, other_runs, output
from jobs.pipeline.step import Context, is_finished
from jobs.settings import Settings
from ppr.errors import StoreError
from ppr.manifest import MANIFEST

Steps = Mapping[str, Mapping[str, Any]]

_ROWS_IN_FULL = "rows_in_full"  # of a run's record: why, where only its graph goes on from the base


@dataclass(frozen=True, slots=True)
class Base:
    """What a run goes on from.

    Attributes
    ----------
    run
        Name of the run that made it.
    graph, fingerprints
        Its stores, which may be gone by now.
    facts
        What that run recorded of both steps.
    """

    run: str
    graph: Path
    fingerprints: Path
    facts: Steps

    @classmethod
    def of(cls, work: Path, record: Mapping[str, Any]) -> Base:
        """The base of a record."""
        steps = {step: record["steps"][step] for step in ("graph", "fingerprints")}
        stores = {step: output(work, step, made["key"]) for step, made in steps.items()}
        return cls(str(record["run"]), **stores, facts={step: steps[step]["facts"] for step in steps})

    @property
    def is_there(self) -> bool:
        """Whether both stores are there."""
        return is_finished(self.graph) and is_finished(self.fingerprints)

    @property
    def made_with(self) -> dict[str, Any]:
        """The settings that it was made with, as :func:`made_with` has them."""
        return {
            "weighted": self.facts["graph"].get("weighted"),
            "parameters": self.facts["fingerprints"].get("parameters"),
        }


def made_with(settings: Settings) -> dict[str, Any]:
    """Settings that a base must have been made with, JSON-able."""
    return {"weighted": settings.graph.weighted, "parameters": settings.fingerprints.params().to_json()}


def settled(context: Context) -> tuple[Base | None, str | None]:
    """Base of the run, chosen now if it was not yet; without one, why the run is made in full.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    wanted, record = made_with(context.settings), context.run.base
    if not context.settings.refresh.tolerance:
        if record is not None:
            context.run.settle(None)
    elif (record or {}).get("made_with") != wanted:
        context.run.settle({**_chosen(context, wanted), "made_with": wanted})
    return recorded(context)


def recorded(context: Context) -> tuple[Base | None, str | None]:
    """Base that the run has; without one, why it is made in full."""
    record = context.run.base
    if not context.settings.refresh.tolerance or record is None:
        return None, None
    if record["run"] is None:
        return None, str(record["why"])
    return Base.of(context.work, record), None


def of_rows(context: Context) -> tuple[Base | None, str | None]:
    """Base of the fingerprints, where the run's graph went on from it; without one, why they are in full."""
    base, why = recorded(context)
    of_graph = context.run.facts("graph").get("base")
    if of_graph is not None and not context.settings.refresh.tolerance:
        return None, "'tolerance' is 0"
    if base is None or base.run != of_graph:
        return None, why
    if base.made_with["parameters"] != made_with(context.settings)["parameters"]:
        return None, f"the run {base.run} was made with other settings"
    gave_up = _why_rows_in_full(context)
    return (base, None) if gave_up is None else (None, gave_up)


def go_on(context: Context, base: Base, make: Callable[[], object]) -> str | None:
    """Make something from a base; gives why the base cannot be used, if so."""
    is_there = base.is_there if _why_rows_in_full(context) is None else is_finished(base.graph)
    if not is_there:
        return f"the stores of the run {base.run}, which this one went on from, are gone"
    try:
        make()
    except StoreError as error:  # of other stores, too: then what is made in full instead says the same
        return f"the stores of the run {base.run} cannot be used: {error}"
    return None


def give_up(context: Context, why: str) -> None:
    """Record that the run is made in full, since its base cannot be used.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    context.run.settle(_in_full(why) | {"made_with": made_with(context.settings)})


def give_up_rows(context: Context, why: str) -> None:
    """Record that the rows are made in full, of a graph that goes on from the base.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    context.run.settle({**(context.run.base or {}), _ROWS_IN_FULL: why})


def _why_rows_in_full(context: Context) -> str | None:
    why: str | None = (context.run.base or {}).get(_ROWS_IN_FULL)
    return why


def _chosen(context: Context, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Record of the base for a run that has none yet."""
    problems = list[str]()
    for record in _earlier(context):
        base = Base.of(context.work, record)
        if base.made_with != wanted:
            problems.append(f"the run {base.run} was made with other settings")
        elif not base.is_there:
            problems.append(f"the stores of the run {base.run} are gone")
        else:
            removed, most = _removed(base.graph), context.settings.pipeline.max_removed
            if removed <= most:
                return record
            share, limit = _percentages(removed, most)
            return _in_full(
                f"ids begin anew, since {share} of the nodes of the run {base.run} are removed ones "
                f"('max_removed' is {limit})"
            )
    return _in_full(next(iter(problems), "there is no run before this one"))


def _percentages(share: float, limit: float) -> tuple[str, str]:
    """Both, with as many digits as tell them apart."""
    pairs = [(f"{share:.{digits}%}", f"{limit:.{digits}%}") for digits in range(17)]
    return next((pair for pair in pairs if pair[0] != pair[1]), pairs[-1])


def _in_full(why: str) -> dict[str, Any]:
    return {"run": None, "why": why}


def _earlier(context: Context) -> Iterator[dict[str, Any]]:
    """What may be a base: of a run without an end what it had before, then earlier runs, the last first."""
    run = context.run
    if run.until is None and run.base is not None and run.base["run"] == run.name:
        yield run.base
    dated = [record for record in other_runs(context.work, run) if record["until"] is not None]
    ends = [(datetime.fromisoformat(record["until"]), record) for record in dated]
    for _, record in sorted(ends, key=lambda one: one[0], reverse=True):
        if run.until is None or datetime.fromisoformat(record["until"]) < run.until:
            base = as_base(str(record["run"]), record["steps"])
            if base is not None:
                yield base


def _removed(graph: Path) -> float:
    """Share of removed nodes among all of a graph."""
    counts = json.loads((graph / MANIFEST).read_text(encoding="utf-8"))["counts"]
    return float(counts.get("removed", 0) / counts["nodes"])
