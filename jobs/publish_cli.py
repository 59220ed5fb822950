"""The subcommand ``publish``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from typer import Option

from jobs import options as opt
from jobs.command import print_result, settings_for

Root = Annotated[Path, Option("--root", resolve_path=True, help="Folder of all releases.")]
Model = Annotated[Path, Option("--model", help="Bundle of a trained router.")]
Fingerprints = Annotated[Path | None, Option("--fingerprints", "-f", help="Fingerprints of the graph.")]
Activate = Annotated[bool, Option("--activate/--no-activate", help="Let services switch to the release.")]
FeedbackUntil = Annotated[
    datetime | None,
    Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
        help="Time in UTC up to which services' feedback was in the training; default: none was.",
    ),
]


def publish(
    root: Root,
    model: Model,
    graph: opt.GraphOption = None,
    fingerprints: Fingerprints = None,
    activate: Activate = True,
    feedback_until: FeedbackUntil = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Make a release of a router's bundle, its graph and its fingerprints, and switch services to it."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from jobs.publish import run

    print_result(
        run(
            root,
            model=model,
            graph=graph,
            fingerprints=fingerprints,
            activate=activate,
            feedback_until=None if feedback_until is None else feedback_until.replace(tzinfo=UTC),
        )
    )
