"""A candidate for the next release, and the rows to judge it by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Candidate:
    """Stores that belong together and may become a release.

    Attributes
    ----------
    model, graph, fingerprints
        Folders, as :func:`router.publishing.publish` takes them; a model of choices alone has no others.
    """

    model: Path
    graph: Path | None = None
    fingerprints: Path | None = None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a candidate was not trained on, and what it was; Parquet files, None where there is nothing.

    Attributes
    ----------
    interactions, training_interactions
        Columns ``user``, ``item`` and, where there are any, ``weight`` and ``timestamp``.
    choices, training_choices
        Events, as ``train-router`` reads them.
    """

    interactions: Path | None = None
    choices: Path | None = None
    training_interactions: Path | None = None
    training_choices: Path | None = None
