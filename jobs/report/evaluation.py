"""Pictures and page of a router's evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from jobs.report import html
from jobs.report.data import Fact
from jobs.report.style import INK_SOFT, RC, SERIES

_SIZE = (10.0, 4.2)  # inches; the page scales it
_AREA = 240.0  # of a dot that stands for a third of the choices


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidence and accuracy by bin, float64 [b], and the choices in each, int [b]; none is empty."""

    label: str
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    counts: NDArray[np.int64]


def reliability_figure(curves: Sequence[Reliability]) -> Figure:
    """How often the likeliest LLM was chosen, against its probability; larger dots are more choices."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.plot((0, 1), (0, 1), color=INK_SOFT, linewidth=1.2, linestyle=(0, (4, 3)), label="calibrated")
    for curve, colour in zip(curves, SERIES, strict=False):
        axes.plot(curve.confidence, curve.accuracy, color=colour, label=curve.label)
        area = 3.0 * _AREA * curve.counts / max(1, curve.counts.sum())
        axes.scatter(curve.confidence, curve.accuracy, s=area, color=colour, alpha=0.7, linewidths=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability of the likeliest LLM")
    axes.set_ylabel("share in which it was chosen")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left")
    return figure


def write_evaluation(
    path: Path,
    title: str,
    summary: str,
    shown: Iterable[Fact],
    curves: Sequence[Reliability],
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
) -> Path:
    """Write the page of an evaluation as one self-contained file.

    Parameters
    ----------
    tables
        Columns and rows by caption.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    parts = [html.heading(title, summary), html.facts(shown)]
    with matplotlib.rc_context(RC):
        if curves:
            parts.append(
                html.picture(
                    "Calibration",
                    "A router whose probabilities are right lies on the dashed line; below, it is too sure.",
                    reliability_figure(curves),
                    "calibration",
                    "; ".join(_in_words(curve) for curve in curves),
                )
            )
    parts += [html.section(caption, "", html.table(*content)) for caption, content in tables.items()]
    return html.write_page(path, html.page(title, parts))


def rows_of(figures: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table, from names to numbers or to mappings of numbers."""
    return [
        [name, *(_shown(value) for value in (values.values() if isinstance(values, Mapping) else [values]))]
        for name, values in figures.items()
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _in_words(curve: Reliability) -> str:
    points = zip(curve.confidence, curve.accuracy, strict=True)
    return f"{curve.label}: " + ", ".join(f"{p:.2f} chosen {share:.2f}" for p, share in points)
