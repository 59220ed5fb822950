"""What a report shows, as plain arrays and strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True, slots=True)
class ModelShares:
    """Who gets which LLM: one table of a picture.

    Parameters
    ----------
    title
        What the rows are.
    rows
        Name of each row.
    models
        Name of each LLM.
    shares
        Share of the row's choices that fall on the LLM, ``float64 [rows, models]``, rows sum to 1.
    """

    title: str
    rows: tuple[str, ...]
    models: tuple[str, ...]
    shares: FloatArray


@dataclass(frozen=True, slots=True)
class SupportCurves:
    """Quality of several methods against the number of choices that were observed of a user.

    Parameters
    ----------
    title
        Whose quality.
    bins
        Numbers of observed choices, as text, ascending.
    n_users
        Users in each bin, ``int64 [b]``.
    means, errors
        Quality of each method by its name, ``float64 [b]``: mean over users, and its standard error.
    """

    title: str
    bins: tuple[str, ...]
    n_users: IntArray
    means: Mapping[str, FloatArray]
    errors: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True)
class UserMap:
    """Users as points of a plane, coloured in several ways.

    Parameters
    ----------
    points
        ``float64 [n, 2]``.
    explained
        Share of the variance along each of the two axes.
    colourings
        Title of each panel to the group of each user.
    """

    points: FloatArray
    explained: tuple[float, float]
    colourings: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class TrainingCurve:
    """How a training went; all in nats per choice.

    Parameters
    ----------
    steps
        ``int64 [p]``, ascending.
    log_likelihood
        Of the training choices, under vectors drawn from what is believed of the users, ``float64 [p]``.
    divergence
        Of these beliefs from the prior, ``float64 [p]``.
    validation
        Log-likelihood of held-out choices, ``float64 [p]``; NaN where it was not measured.
    """

    steps: IntArray
    log_likelihood: FloatArray
    divergence: FloatArray
    validation: FloatArray

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> TrainingCurve:
        """Curve of the ``history`` among a router's metrics."""
        history = metrics["history"]
        steps = np.array(history["step"], dtype=np.int64)
        validation = np.array([np.nan if x is None else x for x in history["held_out"]])
        return cls(steps, np.array(history["log_likelihood"]), np.array(history["divergence"]), validation)


@dataclass(frozen=True, slots=True)
class RoutedUser:
    """What one user gets for a question, and why.

    Parameters
    ----------
    user, model
        Names.
    reasons
        Label and sentence of each piece of evidence.
    """

    user: str
    model: str
    reasons: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterReport:
    """The choice of LLMs. A part that is empty is left out of the page.

    Parameters
    ----------
    note
        Where the choices come from and how the test part was made.
    quality_metrics, quality
        As in :class:`ReportData`.
    question, question_note, users
        A question, how it and the users were found, and what each of them gets.
    shares
        Who gets which LLM.
    curves
        Quality against the number of observed choices.
    curves_label
        What that quality is.
    user_map
        The users' vectors.
    """

    note: str = ""
    quality_metrics: tuple[str, ...] = ()
    quality: tuple[QualityRow, ...] = ()
    question: str = ""
    question_note: str = ""
    users: tuple[RoutedUser, ...] = ()
    shares: tuple[ModelShares, ...] = ()
    curves: tuple[SupportCurves, ...] = ()
    curves_label: str = ""
    user_map: UserMap | None = None


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
    router
        The choice of LLMs.
    training
        How the router's training went.
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
    router: RouterReport | None = None
    training: TrainingCurve | None = None
    parameters: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
