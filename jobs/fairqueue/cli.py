"""The commands ``fairpath fairqueue ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from jobs import options as opt
from jobs.command import print_result, settings_for

app = typer.Typer(help="The fair queue of a shared Spark application.", no_args_is_help=True)


def _page(path: Path) -> Path:
    if path.suffix != ".html":
        raise typer.BadParameter(f"must end in .html (got {path.name!r})")
    return path


Trace = Annotated[
    Path | None,
    Option(help="CSV file of a cluster trace, such as the Google window; without it, scenarios only."),
]
ReportOut = Annotated[
    Path, Option("--out", "-o", resolve_path=True, callback=_page, help="HTML report to write.")
]
FirstSeed = Annotated[int, Option("--seed", min=0, help="First seed of the random workloads.")]


@app.callback()
def _group() -> None:
    pass


@app.command()
def simulate(
    out: ReportOut = Path("fairqueue.html"),
    trace: Trace = None,
    seed: FirstSeed = 0,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Compare policies on a simulated cluster of 32 slots; takes some seconds and needs no Spark."""
    given = {"log.level": log_level, "log.format": log_format}
    settings_for(given, None, None, dry_run, ("log",), out=out, trace=trace, seed=seed)
    from jobs.fairqueue.simulate import run

    print_result(run(out, trace=trace, seed=seed))
