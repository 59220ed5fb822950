"""The subcommand ``pipeline``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from typer import Argument, Option

from jobs import options as opt
from jobs.command import print_result, settings_for, utc
from jobs.errors import ConfigurationError
from jobs.logs import log_interrupt
from jobs.pipeline.record import STEPS

Steps = Annotated[
    list[str] | None, Argument(metavar="[STEP]...", help=f"Of {', '.join(STEPS)}. Default: all of them.")
]
Until = Annotated[
    str | None,
    Option(
        metavar="TIME",
        help="End of the data interval, ISO 8601, UTC where no zone is given: rows at or after it do not "
        "take part; not in the future. Default: all up to now.",
    ),
]
_SECTIONS = ("pipeline", "gate", "graph", "fingerprints", "refresh", "router", "spark", "dask", "log")


def pipeline(
    steps: Steps = None,
    until: Until = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """From deliveries and feedback to a release; only what changed is made anew."""
    for step in steps or ():
        if step not in STEPS:
            raise ConfigurationError(f"'STEP' must be one of {', '.join(STEPS)} (got {step!r})")
    end = None if until is None else _time(until)
    given = {"log.level": log_level, "log.format": log_format}
    settings = settings_for(given, config, assign, dry_run, _SECTIONS, steps=steps or list(STEPS), until=end)
    from jobs.pipeline.run import run

    try:
        result = run(settings, steps or (), until=end)
    except KeyboardInterrupt:
        log_interrupt()
        raise typer.Exit(130) from None
    print_result(result)


def _time(text: str) -> datetime:
    try:
        time = utc(datetime.fromisoformat(text))
    except ValueError:
        raise ConfigurationError(f"'--until' must be an ISO 8601 time (got {text!r})") from None
    if time.microsecond:
        raise ConfigurationError(f"'--until' must be a whole second (got {text!r})")
    try:
        time.astimezone(UTC) - timedelta(days=1)
        time - timedelta(days=1)
    except OverflowError:
        raise ConfigurationError(
            f"'--until' must be a time from 0001-01-02 to 9999-12-31 in UTC (got {text!r})"
        ) from None
    return time
