"""What all commands share: resolved settings, the dry run, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from jobs.errors import ConfigurationError
from jobs.logs import configure_logs
from jobs.settings import Settings
from jobs.settings_layers import load_settings, redact


def settings_for(
    given: Mapping[str, Any],
    config: list[Path] | None = None,
    assign: list[str] | None = None,
    dry_run: bool = False,
    sections: Sequence[str] | None = None,
    /,
    **arguments: Any,
) -> Settings:
    """Resolve the settings and configure the logs; a dry run prints those of the sections and ends here.

    Parameters
    ----------
    given
        Values of options by ``"section.key"``, None where not given.
    config, assign, dry_run
        The options of the same names.
    sections
        Sections that matter to the command; None for all.
    **arguments
        The command's arguments, for the dry run.
    """
    resolved = load_settings(given, assignments=assign or (), files=config or ())
    if dry_run:
        shown = {
            name: values
            for name, values in resolved.describe().items()
            if sections is None or name in sections
        }
        print_result({"arguments": redact(arguments), "settings": shown})
        raise typer.Exit()
    configure_logs(resolved.settings.log.level, resolved.settings.log.format)
    return resolved.settings


def engine_for(
    engine: str | None, master: str | None, remote: str | None, scheduler: str | None = None
) -> str | None:
    """The engine that options ask for: where they name a cluster, it is the cluster's.

    Raises
    ------
    ConfigurationError
        They ask for another engine as well.
    """
    addresses = {
        "--master": (master, "spark"),
        "--remote": (remote, "spark"),
        "--scheduler": (scheduler, "dask"),
    }
    for name, (url, of) in addresses.items():
        if url is not None:
            if engine not in (None, of):
                raise ConfigurationError(
                    f"'{name}' goes with the {of.title()} engine (got --engine {engine})"
                )
            engine = of
    return engine


def engine_options(
    engine: str | None,
    master: str | None,
    remote: str | None,
    scheduler: str | None,
    threads: int | None,
    partitioned: str | None,
    worker_memory: str | None,
) -> dict[str, Any]:
    """Settings that the options of a command that computes fingerprints stand for."""
    return {
        "fingerprints.engine": engine_for(engine, master, remote, scheduler),
        "fingerprints.threads": threads,
        "fingerprints.partitioned": partitioned,
        "fingerprints.worker_memory": worker_memory,
        "spark.master": master,
        "spark.remote": remote,
        "dask.scheduler": scheduler,
    }


def table_options(
    src: str | None,
    dst: str | None,
    weight: str | None,
    delimiter: str | None,
    header: bool | None,
    src_kind: str | None,
    dst_kind: str | None,
    directed: bool | None,
) -> dict[str, Any]:
    """Settings that the options of a command that reads tables of edges stand for."""
    return {
        "graph.src": src,
        "graph.dst": dst,
        "graph.weight": weight,
        "graph.delimiter": delimiter,
        "graph.header": header,
        "graph.src_kind": src_kind,
        "graph.dst_kind": dst_kind,
        "graph.directed": directed,
    }


def print_result(result: Mapping[str, Any]) -> None:
    """Print a job's result as JSON on standard output."""
    typer.echo(json.dumps(result, indent=2, ensure_ascii=False, default=str))


def utc(given: datetime) -> datetime:
    """A time given on the command line: in UTC where no zone was."""
    return given if given.tzinfo is not None else given.replace(tzinfo=UTC)
