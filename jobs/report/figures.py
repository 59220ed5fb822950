"""Pictures of a report. Each function takes plain data and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jobs.report.data import AccuracyCurve, CostCurve, FloatArray, IntArray, QualityRow
from jobs.report.style import INK, INK_SOFT, MUTED, SERIES

_WIDTH = 10.0  # inches; the page scales it


def degree_figure(degrees: Mapping[str, IntArray]) -> Figure:
    """Complementary cumulative distribution of the degrees by kind, both axes logarithmic."""
    figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (kind, degree), colour in zip(degrees.items(), SERIES, strict=False):
        values, counts = np.unique(degree[degree > 0], return_counts=True)
        if len(values) == 0:
            continue
        at_least = np.cumsum(counts[::-1])[::-1] / len(degree)
        axes.plot(values, at_least, "o", color=colour, label=f"{kind} ({len(degree):,})", markersize=4)
    _log_axis(axes, "x")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("degree d (edges of a node)")
    axes.set_ylabel("share of nodes with degree ≥ d")
    axes.legend(loc="lower left")
    return figure


def accuracy_figure(curves: Sequence[AccuracyCurve]) -> Figure:
    """RAG@50 and L1 error against the number of walks, each with the middle 80 % of the sources."""
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve, colour in zip(curves, SERIES, strict=False):
        for axes, values in ((left, curve.rag), (right, curve.l1)):
            low, high = np.quantile(values, (0.1, 0.9), axis=1)
            axes.fill_between(curve.n_walks, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(curve.n_walks, values.mean(axis=1), "o-", color=colour, label=curve.label)
    left.axhline(1.0, color=INK_SOFT, linewidth=1.2, linestyle=(0, (4, 3)), label="exact solver")
    for axes in (left, right):
        _log_axis(axes, "x")
        axes.set_xlabel("walks per source R")
    left.set_title("RAG@50: share of the best 50 nodes' mass that is found")
    left.legend(loc="lower right")
    right.set_title("L1 error of the whole distribution")
    right.set_yscale("log")
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.yaxis.set_minor_formatter(FuncFormatter(_sparse_label))
    return figure


def cost_figure(curves: Sequence[CostCurve]) -> Figure:
    """Time per source and per move against the number of walks, one thread."""
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curve, colour in zip(curves, (*SERIES[:2], INK_SOFT), strict=False):
        if len(curve.n_walks) == 0:
            style = {"color": INK_SOFT, "linewidth": 1.2, "linestyle": (0, (4, 3))}
            left.axhline(curve.ms_per_source[0], label=curve.label, **style)
            continue
        left.plot(curve.n_walks, curve.ms_per_source, "o-", color=colour, label=curve.label)
        if len(curve.ns_per_move):
            right.plot(curve.n_walks, curve.ns_per_move, "o-", color=colour, label=curve.label)
    for axes in (left, right):
        _log_axis(axes, "x")
        axes.set_xlabel("walks per source R")
    left.set_title("Time per source, milliseconds")
    left.set_yscale("log")
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    left.yaxis.set_minor_formatter(FuncFormatter(_sparse_label))
    left.legend(loc="lower right")
    right.set_title("Time per move (one edge handed mass), nanoseconds")
    right.set_ylim(bottom=0)
    return figure


def work_figure(predicted: FloatArray, actual: IntArray) -> Figure:
    """Work of each block of sources, as the plan predicted it and as counted."""
    figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
    axes = figure.add_subplot()
    block = np.arange(1, len(actual) + 1)
    axes.bar(block, actual / 1e6, width=0.8 if len(block) > 1 else 0.3, color=SERIES[0], label="counted")
    axes.step(
        np.append(block - 0.5, block[-1] + 0.5),
        np.append(predicted, predicted[-1]) / 1e6,
        where="post",
        color=INK,
        linewidth=1.4,
        label="predicted",
    )
    axes.set_xlabel("block of sources")
    axes.set_ylabel("moves, millions")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.set_xlim(0.4, len(actual) + 0.6)
    axes.set_ylim(0, 1.3 * max(actual.max(), predicted.max()) / 1e6)
    axes.legend(loc="upper right", ncols=2)
    return figure


def quality_figure(metrics: Sequence[str], rows: Sequence[QualityRow]) -> Figure:
    """One panel of bars per metric, the methods in the order given, each with its number."""
    figure = Figure(figsize=(_WIDTH, 0.8 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    position = np.arange(len(rows))
    colours = [SERIES[0] if row.label.startswith("Fairpath") else MUTED for row in rows]
    for column, (axes, metric) in enumerate(zip(panels, metrics, strict=True)):
        values = [row.values[column] for row in rows]
        axes.barh(position, values, height=0.62, color=colours)
        for y, value in zip(position, values, strict=True):
            axes.text(value + 0.015 * max(values), y, f"{value:.3f}", va="center", color=INK)
        axes.set_title(metric)
        axes.set_xlim(0, 1.22 * max(*values, 1e-9))
        axes.set_yticks(position, [row.label for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
    panels[0].invert_yaxis()
    return figure


def quality_text(metrics: Sequence[str], rows: Sequence[QualityRow]) -> str:
    """The figures of :func:`quality_figure` as text."""
    return "; ".join(
        f"{row.label}: "
        + ", ".join(f"{metric} {value:.3f}" for metric, value in zip(metrics, row.values, strict=True))
        for row in rows
    )


def _log_axis(axes: Axes, which: str) -> None:
    """Logarithmic axis with plain numbers at the powers of ten."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_locator(NullLocator())


def _sparse_label(value: float, _: int | None) -> str:
    """Label of a minor tick: only 2 and 5 times a power of ten, so that labels keep apart."""
    mantissa = round(value / 10 ** np.floor(np.log10(value) + 1e-9), 6)
    return f"{value:g}" if mantissa in (2, 5) else ""
