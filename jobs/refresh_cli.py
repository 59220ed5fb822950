"""The subcommand ``refresh``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from jobs import options as opt
from jobs.command import engine_options, print_result, settings_for
from jobs.logs import log_interrupt

Old = Annotated[Path, Option("--from", help="Fingerprint store to refresh.")]
OldGraph = Annotated[str, Option("--from-graph", help="Graph store that it was computed from.")]
Tolerance = Annotated[
    float | None, Option(help="How far a row's true fingerprint may move before it is computed anew.")
]
Sources = Annotated[
    Path | None,
    Option(
        help="File of source keys, one a line; default: those of the old store, and where these are all of "
        "some kinds, the new nodes of these too."
    ),
]


def refresh(
    graph: opt.GraphUrl,
    old: Old,
    old_graph: OldGraph,
    out: opt.OutPath,
    tolerance: Tolerance = None,
    sources: Sources = None,
    source_kind: opt.SourceKind = None,
    engine: opt.Engine = None,
    master: opt.Master = None,
    remote: opt.Remote = None,
    scheduler: opt.Scheduler = None,
    threads: opt.Threads = None,
    partitioned: opt.Partitioned = None,
    worker_memory: opt.WorkerMemory = None,
    config: opt.Config = None,
    assign: opt.Assign = None,
    dry_run: opt.DryRun = False,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Bring fingerprints up to date with a changed graph: compute those that moved, keep the others."""
    given = {
        "refresh.tolerance": tolerance,
        **engine_options(engine, master, remote, scheduler, threads, partitioned, worker_memory),
        "log.level": log_level,
        "log.format": log_format,
    }
    arguments = {"graph": graph, "from": old, "from_graph": old_graph, "out": out}
    arguments |= {"sources": sources, "source_kind": source_kind}
    settings = settings_for(given, config, assign, dry_run, **arguments)
    from jobs.refresh import run

    try:
        result = run(
            graph,
            out,
            settings,
            old=old,
            old_graph=old_graph,
            sources_file=sources,
            source_kind=source_kind,
        )
    except KeyboardInterrupt:
        log_interrupt()
        raise typer.Exit(130) from None
    print_result(result)
