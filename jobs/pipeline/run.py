"""Job: the pipeline, all of it or some steps: from deliveries and feedback to a release.

Every step keeps its output by what it was made from (:mod:`jobs.pipeline.record`), so a step whose inputs are
unchanged does nothing, a run that was killed goes on where it stopped, and equal inputs give equal outputs,
whatever happened in between. The same steps are the tasks of the DAG.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from jobs.errors import ConfigurationError, NotYetError, exit_code
from jobs.pipeline.deliveries import check_ready, check_sources
from jobs.pipeline.lock import only_one
from jobs.pipeline.memory import peak_bytes, reset_peak
from jobs.pipeline.record import PAGE, STEPS, Run
from jobs.pipeline.rules import check_places
from jobs.pipeline.step import Context, Outcome
from jobs.progress import show_progress
from jobs.settings import Settings
from jobs.settings_layers import redact
from ppr.manifest import full_disk_is_an_error

_AT_THE_END = ("report", "notify")  # after a failure too
_CLOCKS_DIFFER = timedelta(minutes=1)


def run(
    settings: Settings,
    steps: Sequence[str] = (),
    *,
    until: datetime | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> dict[str, Any]:
    """Do steps of a run, in their order; without any named, all.

    Parameters
    ----------
    settings
        All settings.
    steps
        Some of :data:`jobs.pipeline.record.STEPS`.
    until
        End of the data interval: rows at or after it do not take part. None for all up to now. The last day
        of the interval is that of its zone.
    now
        The clock.

    Returns
    -------
    dict
        What each step did, and the release; JSON-able.

    Raises
    ------
    NotYetError
        A delivery is not there yet, or another pipeline is at work in the folder.
    ConfigurationError
        A setting breaks its rule, the end is in the future, or a step before was not done for this run.
    PprError, RouterError
        A step failed; the report tells of it too, where all steps were asked for.
    """
    wanted = [step for step in STEPS if step in steps or not steps]
    work, clock = settings.pipeline.work, now()
    check_places(settings.pipeline)
    if until is not None and until > clock + _CLOCKS_DIFFER:
        raise ConfigurationError(
            f"'until' must not be in the future (got {until.isoformat()}; this machine's clock says "
            f"{clock.isoformat(timespec='seconds')})"
        )
    if "collect" in wanted:
        check_sources(settings.pipeline)  # before a folder is made
    with only_one(work):
        zone = None if until is None else until.tzinfo
        context = Context(settings, Run.open(work, until), clock, zone or UTC)
        if wanted == ["ready"]:
            return {"run": context.run.name, "ready": True, "found": _ready(context).facts["found"]}
        with show_progress(lines=False) as update:
            for number, step in enumerate(wanted):
                update("pipeline, steps", number, len(wanted), step)
                try:
                    _do(context, step)
                except NotYetError:
                    raise
                except Exception:
                    if not steps and step not in _AT_THE_END:
                        _tell_of_failure(context)
                    raise
            update("pipeline, steps", len(wanted), len(wanted), "")
    return _result(context, wanted)


def _tell_of_failure(context: Context) -> None:
    """Report a run of which a step failed; what goes wrong with that does not hide the failure."""
    for step in _AT_THE_END:
        with suppress(Exception):  # it is logged
            _do(context, step)


def _do(context: Context, step: str) -> None:
    """Do a step, record what came of it, and say so."""
    started, clock = datetime.now(UTC), time.monotonic()
    reset_peak()
    about: dict[str, Any] = {"started": started.isoformat(timespec="seconds")}
    try:
        with full_disk_is_an_error(context.work):
            outcome = _step(step)(context)
    except Exception as error:
        code = exit_code(error)
        told = {"type": type(error).__name__, "text": redact(str(error)), "exit_code": code}
        about |= _costs(clock) | {"state": "failed", "error": told}
        if code != 75 and context.run.folder.parent.exists():
            context.run.keep(step, about)
        structlog.get_logger().error(step, state="failed", seconds=about["seconds"])
        raise
    about |= _costs(clock) | {"state": outcome.state, "key": outcome.key, "facts": outcome.facts}
    old = context.run.steps.get(step, {})
    if outcome.state == "kept" and old.get("key") == outcome.key and old.get("state") in ("done", "kept"):
        # What it cost to make is told on, and which run of the step that was.
        about |= {name: old[name] for name in ("started", "seconds", "peak_bytes") if name in old}
    context.run.keep(step, about)
    why = outcome.facts.get("why")
    structlog.get_logger().info(
        step, state=outcome.state, **_costs(clock, memory=False), **({} if why is None else {"why": why})
    )


def _costs(clock: float, *, memory: bool = True) -> dict[str, Any]:
    seconds = {"seconds": round(time.monotonic() - clock, 3)}
    return {**seconds, "peak_bytes": peak_bytes()} if memory else seconds


def _step(name: str) -> Callable[[Context], Outcome]:
    """The function of a step; what it needs is imported when it is done."""
    if name == "ready":
        return _ready
    if name == "collect":
        from jobs.pipeline import collect as module
    elif name in ("graph", "fingerprints", "train"):
        from jobs.pipeline import making as module  # type: ignore[no-redef]
    elif name in ("evaluate", "publish"):
        from jobs.pipeline import releasing as module  # type: ignore[no-redef]
    else:
        from jobs.pipeline import reporting as module  # type: ignore[no-redef]
    function: Callable[[Context], Outcome] = getattr(module, name)
    return function


def _ready(context: Context) -> Outcome:
    end = (context.run.until or context.now).astimezone(context.zone)
    found = check_ready(context.settings.pipeline, end)
    return Outcome("ready", facts={"found": found})


def _result(context: Context, steps: Sequence[str]) -> dict[str, Any]:
    run = context.run
    result: dict[str, Any] = {
        "run": run.name,
        "until": None if run.until is None else run.until.isoformat(),
        "steps": {step: _told(run.steps[step]) for step in steps},
    }
    if "publish" in steps and run.facts("publish").get("decision") is not None:
        facts = run.facts("publish")
        result |= {"published": facts["published"], "release": facts["release"]}
        result |= {name: facts["decision"].get(name) for name in ("summary", "reasons")}
    if "report" in steps:
        result["report"] = str(run.folder / PAGE)
    return result


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is printed of a step."""
    shown = {name: record[name] for name in ("state", "key", "seconds") if record.get(name) is not None}
    facts = record.get("facts", {})
    if "why" in facts:
        shown["why"] = facts["why"]
    of_rows = ("recomputed", "share_recomputed", "largest_bound", "mean_bound")
    return shown | {name: facts[name] for name in ("checksum", "tables", "base", *of_rows) if name in facts}
