"""The subcommand ``publish``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

from typer import Option

from jobs import options as opt
from jobs.command import print_result, settings_for, utc
from jobs.releases_cli import folder_of_releases

Root = Annotated[str, Option("--root", metavar="FOLDER", help="Folder of all releases.")]
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
        formats=opt.TIMES,
        help="Time up to which services' feedback was in the training, as 'feedback export' prints it; UTC "
        "where no zone is given. Default: none was.",
    ),
]
ErasedUntil = Annotated[
    datetime | None,
    Option(
        formats=opt.TIMES,
        help="Time up to which users' erasures were carried out in all that the stores were made from; UTC "
        "where no zone is given. Default: none were.",
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
    erased_until: ErasedUntil = None,
    log_level: opt.LogLevel = None,
    log_format: opt.LogFormat = None,
) -> None:
    """Make a release of a router's bundle, its graph and its fingerprints, and switch services to it."""
    settings_for({"log.level": log_level, "log.format": log_format})
    from jobs.publish import run

    print_result(
        run(
            folder_of_releases(root, "'--root'", "publish to a folder, then 'fairpath releases push' it"),
            model=model,
            graph=graph,
            fingerprints=fingerprints,
            activate=activate,
            new_encoder=new_encoder,
            feedback_until=None if feedback_until is None else utc(feedback_until),
            erased_until=None if erased_until is None else utc(erased_until),
        )
    )
