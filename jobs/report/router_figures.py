"""Pictures of the choice of LLMs and of the router's training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from jobs.report.data import FloatArray, ModelShares, SupportCurves, TrainingCurve, UserMap
from jobs.report.style import INK, INK_SOFT, MUTED, SERIES

_WIDTH = 10.0  # inches; the page scales it
_MARKERS = "osD^vPX*"  # groups differ in shape too: not everybody tells the colours apart
_SHADES = 0.85  # opacity of a cell that holds everything
_BAND = 1.96  # standard errors to each side: 95 %


def shares_figure(tables: Sequence[ModelShares]) -> Figure:
    """One table of shaded cells per panel, each cell with its share in per cent."""
    heights = [len(table.rows) for table in tables]
    figure = Figure(
        figsize=(_WIDTH, 0.85 * len(tables) + 0.36 * sum(heights)),
        layout=ConstrainedLayoutEngine(hspace=0.06),
    )
    panels = figure.subplots(len(tables), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, table in zip(panels, tables, strict=True):
        for (row, column), share in np.ndenumerate(table.shares):
            cell = Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, linewidth=0)
            cell.set(facecolor=SERIES[0], alpha=0.04 + _SHADES * share)
            axes.add_patch(cell)
            axes.text(column, row, f"{100 * share:.0f} %", ha="center", va="center", color=INK)
        axes.set_xlim(-0.5, len(table.models) - 0.5)
        axes.set_ylim(len(table.rows) - 0.5, -0.5)
        axes.set_xticks(range(len(table.models)), table.models)
        axes.set_yticks(range(len(table.rows)), table.rows)
        axes.tick_params(length=0, labelcolor=INK)
        axes.set_title(table.title)
        axes.grid(visible=False)
        axes.spines[["bottom", "left"]].set_visible(False)
    return figure


def support_figure(curves: Sequence[SupportCurves], label: str) -> Figure:
    """One panel per group of users: quality by the number of choices observed, with 95 % intervals."""
    figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, curve in zip(panels, curves, strict=True):
        place = np.arange(len(curve.bins))
        for (name, mean), colour, marker in zip(
            _ours_first(curve), _line_colours(curve), "osD^", strict=False
        ):
            error = _BAND * curve.errors[name]
            axes.fill_between(place, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
            axes.plot(place, mean, marker=marker, color=colour, label=name)
        ticks = [f"{name}\n{n:,}" for name, n in zip(curve.bins, curve.n_users, strict=True)]
        axes.set_xticks(place, ticks)
        axes.set_xlabel("choices observed of the user (below: number of users)")
        axes.set_title(curve.title)
    panels[0].set_ylabel(label)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(curves[0].means)
    )
    return figure


def map_figure(users: UserMap) -> Figure:
    """The users' vectors in the plane, one panel per colouring."""
    figure = Figure(figsize=(_WIDTH, 5.0), layout="constrained")
    panels = figure.subplots(1, len(users.colourings), squeeze=False)[0]
    for axes, (title, groups) in zip(panels, users.colourings.items(), strict=True):
        _scatter(axes, users.points, np.array(groups))
        axes.set_title(title)
        axes.set_xlabel(f"first component, {100 * users.explained[0]:.0f} % of the variance")
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, handletextpad=0.2)
    panels[0].set_ylabel(f"second component, {100 * users.explained[1]:.0f} %")
    return figure


def training_figure(curve: TrainingCurve) -> Figure:
    """Likelihood and divergence against the step."""
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(curve.steps, curve.log_likelihood, color=SERIES[0], label="training choices")
    measured = np.isfinite(curve.validation)
    if measured.any():
        style = {"color": SERIES[1], "label": "held-out choices"}
        left.plot(curve.steps[measured], curve.validation[measured], "o-", **style)
    left.set_title("Log-likelihood, nats per choice")
    left.legend(loc="lower right")
    right.plot(curve.steps, curve.divergence, color=INK_SOFT)
    right.set_title("Divergence from the prior, nats per choice")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _ours_first(curve: SupportCurves) -> list[tuple[str, FloatArray]]:
    return sorted(curve.means.items(), key=lambda item: not item[0].startswith("Fairpath"))


def _line_colours(curve: SupportCurves) -> list[str]:
    return [SERIES[0], SERIES[1], INK_SOFT, MUTED][: len(curve.means)]


def _scatter(axes: Axes, points: FloatArray, groups: np.ndarray) -> None:
    """One collection of dots per group, the largest group first and therefore below the others."""
    names, counts = np.unique(groups, return_counts=True)
    styles = {name: (SERIES[i % len(SERIES)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)}
    for name in names[np.argsort(-counts, kind="stable")]:
        colour, marker = styles[name]
        x, y = points[groups == name].T
        axes.scatter(x, y, s=13, c=colour, marker=marker, alpha=0.65, linewidths=0, label=name)
