"""Pictures of a run's page. Each function takes parts of ``report.json`` and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from jobs.pipeline.drift import POPULARITY, QUANTILES
from jobs.report.style import INK, INK_SOFT, MUTED, SERIES

_WIDTH = 10.0  # inches; the page scales it
_WHOSE = {
    "candidate": ("candidate", SERIES[0], "o"),
    "current": ("current release", SERIES[1], "s"),
    "user_task": ("user and task counted", MUTED, "D"),
    "popularity": ("always the most popular", MUTED, "^"),
}
_LEVELS = {"notable": SERIES[1], "strong": SERIES[7]}  # colours of titles
_MOST_BARS = 16
_NAME_LENGTH = 28

Figures = Mapping[str, Any]


def quality_figure(metrics: Sequence[tuple[str, Figures]]) -> Figure:
    """One panel per metric: means and 95 % intervals of candidate, current release and baselines."""
    whose = [name for name in _WHOSE if any(found.get(name) is not None for _, found in metrics)]
    figure = Figure(figsize=(_WIDTH, 1.0 + 0.4 * len(whose)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, (title, found) in zip(panels, metrics, strict=True):
        for row, name in enumerate(whose):
            if (value := found.get(name)) is not None and value["mean"] is not None:
                _, colour, marker = _WHOSE[name]
                _whisker(axes, row, value, colour, marker)
                _number(axes, row, value)
        _rows(axes, [_WHOSE[name][0] for name in whose])
        axes.margins(x=0.16)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(title)
    return figure


def difference_figure(rows: Sequence[tuple[str, Figures, float | None]]) -> Figure:
    """What the candidate gains or loses, a panel per metric; the shaded part is the tolerance."""
    figure = Figure(figsize=(_WIDTH, 1.5), layout="constrained")
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    for axes, (title, change, tolerance) in zip(panels, rows, strict=True):
        ends = [change[end] for end in ("low", "mean", "high") if change[end] is not None]
        reach = 1.25 * max(*map(abs, ends), tolerance or 0.0, 1e-6)
        if tolerance:
            axes.axvspan(-tolerance, 0.0, color=MUTED, alpha=0.25, linewidth=0)
        axes.axvline(0.0, color=INK_SOFT, linewidth=1.2)
        _whisker(axes, 0, change, SERIES[0], "o")
        axes.annotate(
            f"{change['mean']:+.4f}",
            (change["mean"], 0),
            (0, 8),
            textcoords="offset points",
            ha="center",
            color=INK,
        )
        axes.set_xlim(-reach, reach)
        axes.set_ylim(0.6, -1.2)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        axes.set_title(title)
    return figure


def group_figure(metrics: Sequence[tuple[str, Figures]]) -> Figure:
    """One panel per metric: candidate and current release by group of users."""
    columns = min(2, len(metrics))
    lines = -(-len(metrics) // columns)
    figure = Figure(figsize=(_WIDTH, 0.3 + 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, found) in zip(panels, metrics, strict=True):
        groups = found["groups"]
        for shift, name in ((-0.1, "candidate"), (0.1, "current")):
            label, colour, marker = _WHOSE[name]
            for place, group in enumerate(groups.values()):
                if (value := group.get(name)) is None or value["mean"] is None:
                    continue
                if value["low"] is not None:
                    axes.plot([place + shift] * 2, [value["low"], value["high"]], color=colour)
                axes.plot(place + shift, value["mean"], marker, color=colour, label=label, markersize=7)
        axes.set_xticks(
            range(len(groups)),
            [f"{_words(name)}\n{group['users']:,} users" for name, group in groups.items()],
        )
        axes.set_xlim(-0.5, len(groups) - 0.5)
        axes.grid(axis="x", visible=False)
        axes.set_title(title)
    _legend(figure, panels[0])
    return figure


def shares_figure(rows: Sequence[tuple[str, Figures]]) -> Figure:
    """One panel per distribution: shares now as bars, those of the last run as marks."""
    shown = [(title, *_largest(shift)) for title, shift in rows]
    colours = [_LEVELS.get(shift.get("level", ""), INK) for _, shift in rows]
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    tallest = max(len(names) for _, names, _, _ in shown)
    figure = Figure(figsize=(_WIDTH, lines * (0.9 + 0.3 * tallest)), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, colour, (title, names, now, before) in zip(panels, colours, shown, strict=False):
        place = np.arange(len(names))
        axes.barh(place, now, height=0.6, color=SERIES[0], label="this run")
        if before is not None:
            axes.plot(before, place, "|", color=INK, markersize=14, markeredgewidth=2, label="last run")
        _rows(axes, names)
        axes.set_ylim(tallest - 0.4, -0.6)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlim(left=0)
        axes.set_title(title, color=colour)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    _legend(figure, panels[0])
    return figure


def spread_figure(rows: Sequence[tuple[str, Sequence[float], Sequence[float] | None]]) -> Figure:
    """One panel per count: its quantiles over users or items, logarithmic."""
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(_WIDTH, 0.3 + 2.1 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    place = np.arange(len(QUANTILES))
    for axes, (title, now, before) in zip(panels, rows, strict=True):
        if before is not None:
            axes.plot(
                place, before, "--", color=INK_SOFT, linewidth=1.4, label="last run", marker="s", markersize=4
            )
        axes.plot(place, now, "o-", color=SERIES[0], label="this run")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(min(0.8, *now, *(before or ())) or 0.8, 1.5 * max(1.0, *now, *(before or ())))
        axes.set_xticks(place, [_quantile(q) for q in QUANTILES], fontsize=8)
        axes.set_title(title)
    _legend(figure, panels[0])
    return figure


def steps_figure(steps: Sequence[Mapping[str, Any]]) -> Figure:
    """Time, most memory and bytes written of each step, as bars with their numbers."""
    figure = Figure(figsize=(_WIDTH, 0.8 + 0.36 * len(steps)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    measures: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("time", "seconds", seconds_text),
        ("most memory", "peak_bytes", bytes_text),
        ("on disk", "bytes", bytes_text),
    )
    for axes, (title, key, shown) in zip(panels, measures, strict=True):
        values = [step.get(key) or 0 for step in steps]
        colours = [SERIES[7] if step["state"] == "failed" else SERIES[0] for step in steps]
        axes.barh(np.arange(len(steps)), values, height=0.6, color=colours)
        for row, (step, value) in enumerate(zip(steps, values, strict=True)):
            text = "-" if step.get(key) is None else shown(value)
            axes.text(value + 0.02 * max(*values, 1e-9), row, text, va="center", color=INK)
        _rows(axes, [_step_name(step) for step in steps])
        axes.set_title(title)
        axes.set_xlim(0, 1.4 * max(*values, 1e-9))
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
    return figure


def _step_name(step: Mapping[str, Any]) -> str:
    return str(step["step"]) if step["state"] == "done" else f"{step['step']} ({step['state']})"


def seconds_text(seconds: float) -> str:
    """A duration as a person says it."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def bytes_text(size: float) -> str:
    """A size in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError(size)


def _whisker(axes: Axes, row: int, value: Figures, colour: str, marker: str) -> None:
    if value["low"] is not None:
        axes.plot([value["low"], value["high"]], [row, row], color=colour)
    axes.plot(value["mean"], row, marker, color=colour, markersize=8)


def _number(axes: Axes, row: int, value: Figures) -> None:
    axes.annotate(
        f"{value['mean']:.3f}",
        (value["mean"], row),
        (0, 7),
        textcoords="offset points",
        ha="center",
        color=INK,
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(names) - 0.4, -0.8)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _largest(shift: Figures) -> tuple[list[str], list[float], list[float] | None]:
    """Names and shares of the largest bins, in their order; the others together."""
    now, before = shift["now"], shift.get("before")
    size = {name: max(now[name], before[name] if before else 0.0) for name in now}
    kept = sorted(size, key=lambda name: -size[name])[:_MOST_BARS]
    names = [name for name in (POPULARITY if set(now) == set(POPULARITY) else now) if name in kept]
    columns = [[shares[name] for name in names] for shares in (now, *([before] if before else []))]
    if len(names) < len(now):
        for column in columns:
            column.append(max(0.0, 1.0 - sum(column)))
        names.append("all others")
    short = [name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…" for name in names]
    return short, columns[0], columns[1] if before else None


def _words(group: str) -> str:
    """Name of a group of users without the digit that orders it."""
    return group.partition(" ")[2] if group[:1].isdigit() else group


def _quantile(q: float) -> str:
    return {0.0: "least", 0.5: "half", 1.0: "most"}.get(q, f"{100 * q:g}%")


def _legend(figure: Figure, axes: Axes) -> None:
    """Names of what a panel draws, above all panels, where there is more than one."""
    handles, labels = axes.get_legend_handles_labels()
    names = dict(zip(labels, handles, strict=True))
    if len(names) > 1:
        figure.legend(names.values(), names.keys(), loc="outside upper left", ncols=len(names))
