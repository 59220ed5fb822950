"""The subcommand ``publish``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

from typer import Option

from jobs import options as opt
from jobs.command import print_result, settings_for, utc

Root = Annotated[Path, Option("--root", resolve_path=True, help="Folder of all releases.")]
Model = Annotated[Path, Option("--model", help="Bundle of a trained router.")]
Fingerprints = Annotated[Path | None, Option("--fingerprints", "-f", help="Fingerprints of the graph.")]
Activate = Annotated[bool, Option("--activate/--no-activate", help="Let services switch to the release.")]
NewEncoder = Annotated[
    bool,
    Option("--new-encoder", help="Switch to a model of another encoder; services have to be restarted."),
]
FeedbackUntil = Annotated[
    datetime | None,
    Option(
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f%z"],
        help="Time up to which services' feedback was in the training, as 'feedback export' prints it; UTC "
        "where no zone is given. Default: none was.",
    ),
]


def publish(
    root: Root,
    model: Model,
    graph: opt.GraphOption = None,
    fingerprints: Fingerprints = None,
    activate: Activate = True,
    new_encoder: NewEncoder = False,
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
            new_encoder=new_encoder,
            feedback_until=None if feedback_until is None else utc(feedback_until),
        )
    )
