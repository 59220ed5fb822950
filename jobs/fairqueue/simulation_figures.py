"""Pictures of the simulation's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jobs.fairqueue.simulation.cluster import Schedule, TaskRun
from jobs.fairqueue.simulation.experiments import FloatArray, Lag, Outcome
from jobs.fairqueue.simulation.policies import TITLES
from jobs.report.style import INK, INK_SOFT, MUTED, SERIES, SURFACE

_WIDTH = 10.0  # inches; the page scales it

#: Colour of each policy in every picture.
POLICY_COLOURS: Mapping[str, str] = {
    "fifo": MUTED,
    "fair": SERIES[1],
    "pools": SERIES[3],
    "ujf": SERIES[2],
    "cfq": SERIES[4],
    "uwfq": SERIES[0],
}


def response_figure(outcomes: Mapping[str, Outcome]) -> Figure:
    """Empirical distributions of the response times and of the slowdowns, a line per policy."""
    figure = Figure(figsize=(_WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for policy, outcome in outcomes.items():
        style = {"color": POLICY_COLOURS[policy], "linewidth": 2.6 if policy == "uwfq" else 1.6}
        for axes, values in ((left, outcome.responses_s), (right, outcome.slowdowns)):
            ordered = np.sort(values)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(ordered, share, where="post", **style)
    for axes, title in ((left, "response time, seconds"), (right, "slowdown: response over that when idle")):
        _log_axis(axes)
        axes.set_xlabel(title)
        axes.set_ylim(0, 1.02)
    left.set_ylabel("share of jobs")
    left.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    return figure


def slots_figure(schedules: Mapping[str, Schedule], colours: Mapping[str, str], until_s: float) -> Figure:
    """Who had which slot when: a panel per policy, a row per slot, a bar per job and slot."""
    figure = Figure(figsize=(_WIDTH, 0.5 + 1.55 * len(schedules)), layout="constrained")
    panels = figure.subplots(len(schedules), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (policy, schedule) in zip(panels, schedules.items(), strict=True):
        for user, colour in colours.items():
            runs = [task for task in schedule.tasks if schedule.jobs[task.job].user == user]
            shape = _bars(runs, until_s)
            axes.add_patch(PathPatch(shape, facecolor=colour, edgecolor=SURFACE, linewidth=0.35))
        axes.set_title(TITLES[policy], pad=4)
        axes.set_xlim(0, until_s)
        axes.set_ylim(0, schedule.slots)
        axes.set_yticks([0, schedule.slots])
        axes.grid(visible=False)
    panels[-1].set_xlabel("seconds")
    figure.supylabel("slots", color=INK_SOFT, fontsize=10)
    return figure


def _bars(tasks: Sequence[TaskRun], until_s: float) -> Path:
    """One shape of all bars; tasks of a job that follow each other on a slot are one bar."""
    bars: list[list[float]] = []
    last: dict[int, tuple[int, float, int]] = {}  # slot to (job, end, bar)
    for task in tasks:
        if task.start_s >= until_s:
            continue
        job, end_s, bar = last.get(task.slot, (-1, -1.0, -1))
        if job == task.job and abs(end_s - task.start_s) < 1e-9:
            bars[bar][1] = task.end_s
        else:
            bar = len(bars)
            bars.append([task.start_s, task.end_s, task.slot])
        last[task.slot] = (task.job, task.end_s, bar)
    corners: list[tuple[float, float]] = []
    for start_s, end_s, slot in bars:
        low, high = slot + 0.06, slot + 0.94
        corners += [(start_s, low), (end_s, low), (end_s, high), (start_s, high), (start_s, low)]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(bars)
    return Path(np.array(corners).reshape(-1, 2), codes)


def lag_figure(lags: Mapping[str, Lag]) -> Figure:
    """How far every user is behind its fluid share, over its bound, a panel per policy."""
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, len(lags), sharey=True, squeeze=False)[0]
    for axes, (policy, lag) in zip(panels, lags.items(), strict=True):
        for (user, (times_s, behind)), colour in zip(lag.curves.items(), SERIES, strict=False):
            spans_s, peaks = _peaks(times_s, behind / lag.bounds_core_s[user])
            axes.plot(spans_s, peaks, color=colour, linewidth=1.4)
        axes.axhline(1, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.axhline(0, color=INK_SOFT, linewidth=0.8)
        axes.set_title(TITLES[policy])
        axes.set_xlabel("seconds")
        axes.set_xlim(left=0)
    panels[0].set_ylabel("lag / bound")
    return figure


def _peaks(times_s: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The largest value of each of 300 spans of time: a lighter curve that keeps its peaks."""
    span = np.minimum((times_s / times_s[-1] * 300).astype(np.int64), 299)
    starts = np.flatnonzero(np.diff(span, prepend=-1))
    return times_s[starts], np.maximum.reduceat(values, starts)


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
