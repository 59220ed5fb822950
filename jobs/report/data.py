"""What a report shows, as plain arrays and strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fact:
    """One headline figure: a value as it is to be read, with its label and a note."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class AccuracyCurve:
    """Accuracy of one estimator against its number of walks.

    Parameters
    ----------
    label
        Name of the estimator.
    n_walks
        Walks per source, ``int64 [p]``, ascending.
    rag
        RAG@50 of each sampled source, source excluded, ``float64 [p, n_sources]``.
    l1
        L1 error of each sampled source, ``float64 [p, n_sources]``.
    """

    label: str
    n_walks: IntArray
    rag: FloatArray
    l1: FloatArray


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Time per source of one estimator against its number of walks.

    Parameters
    ----------
    label
        Name of the estimator.
    n_walks
        Walks per source, ``int64 [p]``, ascending; empty for a method without walks.
    ms_per_source
        Milliseconds per source on one thread, ``float64 [p]``, one value where ``n_walks`` is empty.
    ns_per_move
        Nanoseconds per edge that was handed mass, ``float64 [p]``; empty where that has no meaning.
    """

    label: str
    n_walks: IntArray
    ms_per_source: FloatArray
    ns_per_move: FloatArray


@dataclass(frozen=True, slots=True)
class QualityRow:
    """Ranking quality of one method: its values in the order of :attr:`ReportData.quality_metrics`."""

    label: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A node beside a user: its key, the group that colours it, its score, whether it was held out."""

    key: str
    group: str = ""
    score: float = 0.0
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Why one user gets these recommendations: own items, users who share them, what those lead to.

    Parameters
    ----------
    user
        Key of the user.
    history, similar, recommended
        The user's items, similar users and recommended items.
    history_links
        ``int64 [l, 2]``, index pairs (history, similar).
    recommended_links
        ``int64 [l, 2]``, index pairs (similar, recommended).
    """

    user: str
    history: tuple[Neighbour, ...]
    similar: tuple[Neighbour, ...]
    recommended: tuple[Neighbour, ...]
    history_links: IntArray
    recommended_links: IntArray


@dataclass(frozen=True, slots=True)
class UserCard:
    """A user's history beside the recommendations, best first."""

    user: str
    history: tuple[Neighbour, ...]
    recommended: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that a report shows. A part that is empty is left out of the page.

    Parameters
    ----------
    title, summary
        Heading, and one or two sentences below it.
    facts
        Headline figures.
    degrees
        Out-degrees of the nodes by kind, each ``int64 [n]``.
    accuracy, cost
        Curves of the estimators compared.
    predicted_moves, actual_moves
        Work of each block of sources, ``float64 [b]`` and ``int64 [b]``.
    quality_metrics, quality
        Names of the metrics (all: larger is better, at most 1) and the methods compared.
    quality_note
        How the test part was made.
    neighbourhood
        The user to draw.
    users
        Users whose recommendations are listed.
    parameters
        Group to name to value, as text.
    """

    title: str
    summary: str
    facts: tuple[Fact, ...] = ()
    degrees: Mapping[str, IntArray] = field(default_factory=dict)
    accuracy: tuple[AccuracyCurve, ...] = ()
    cost: tuple[CostCurve, ...] = ()
    predicted_moves: FloatArray = field(default_factory=lambda: np.empty(0))
    actual_moves: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    quality_metrics: tuple[str, ...] = ()
    quality: tuple[QualityRow, ...] = ()
    quality_note: str = ""
    neighbourhood: Neighbourhood | None = None
    users: tuple[UserCard, ...] = ()
    parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
