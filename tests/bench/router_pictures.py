"""Pictures of docs/figures from the figures of the last `make bench-router`.

Real responses, simulated users, in all of them but the items'.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import matplotlib
import numpy as np
from harness import ROOT, Comparison, Figure, read_measurements
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator
from persona_runs import ABLATIONS, PARTS, SUPPORTS
from router_choice import BAYES, WARM, track_of

from jobs.report.evaluation import Reliability, reliability_figure
from jobs.report.style import INK, INK_SOFT, MUTED, RC, SERIES, SURFACE
from router.persona import TRACKS, Track

FIGURES = ROOT / "docs" / "figures"
_WIDTH = 10.0
_TITLES = {"seen": "training queries not asked yet", "new": "test queries"}
_WHERE = {"choice-only": "", "telemetry": ", with telemetry"}
_DASHED = (0, (4, 3))
_ABLATION = "G, Gowalla items, rho=0.6, choice-only, k=0, {part}: without {name}"

Values = Mapping[str, float]


def main() -> int:
    """Draw what there are figures of; 1 where a benchmark has not run."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    missing = []
    with matplotlib.rc_context(RC | {"savefig.facecolor": SURFACE, "axes.facecolor": SURFACE}):
        for name, draw in PICTURES.items():
            try:
                picture = draw()
            except KeyError as error:
                missing.append(f"{name} ({error} was not measured)")
                continue
            path = FIGURES / f"{name}.svg"
            picture.savefig(path, metadata={"Date": None, "Creator": None})
            print(path.relative_to(ROOT))
    if missing:
        print(f"not drawn: {', '.join(missing)}", file=sys.stderr)
    return bool(missing)


def new_users() -> Picture:
    """G of new users by the number of their choices."""
    rows, values = _comparisons(), _values("router_choice")
    picture = Picture(figsize=(_WIDTH, 6.6), layout="constrained")
    panels = picture.subplots(len(TRACKS), len(PARTS), sharex=True, sharey="col", squeeze=False)
    for track, of_track in zip(TRACKS, panels, strict=True):
        for part, axes in zip(PARTS, of_track, strict=True):
            _new_users_panel(axes, track, part, rows, values)
    picture.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for axes in panels[-1]:
        axes.set_xlabel("choices made by the user so far")
    return picture


def _new_users_panel(
    axes: Axes, track: Track, part: str, rows: Mapping[str, Comparison], values: Values
) -> None:
    of_k = [rows[f"new users, {track}, k={k}: {part}"] for k in SUPPORTS]
    low, high = zip(*(row.ours_interval or (np.nan, np.nan) for row in of_k), strict=True)
    axes.fill_between(SUPPORTS, low, high, color=SERIES[0], alpha=0.18, linewidth=0)
    axes.plot(SUPPORTS, [row.ours for row in of_k], "o-", color=SERIES[0], label="Fairpath", zorder=3)
    best = [row.baseline_value or np.nan for row in of_k]
    axes.plot(SUPPORTS, best, "o-", color=SERIES[1], label="best simple router")
    key = "G, new users, {}: {}, k={}, {}"
    others = {"user-kNN": (MUTED, "-", "user-kNN")} if track == "choice-only" else {}
    others |= {BAYES: (INK_SOFT, _DASHED, "Bayes, who knows the law")}
    for router, (colour, style, label) in others.items():
        line = [values[key.format(track_of(router), router, k, part)] for k in SUPPORTS]
        axes.plot(SUPPORTS, line, color=colour, linestyle=style, linewidth=1.4, label=label)
    axes.set_title(f"{track}: {_TITLES[part]}")
    axes.set_xticks(SUPPORTS)
    axes.set_ylabel("G (random 0, oracle 1)")


def warm() -> Picture:
    """G of known users, by router."""
    rows, values = _comparisons(), _values("router_choice")
    bars = {
        f"{name}{_WHERE[track_of(name)]}": [
            values[f"G, medium, {track_of(name)}: {name}, {p}"] for p in PARTS
        ]
        for name in WARM["medium"]
    }
    for track in TRACKS:
        bars[f"Fairpath{_WHERE[track]}"] = [rows[f"warm, {track}, medium: {part}"].ours for part in PARTS]
    names = sorted(bars, key=lambda name: bars[name][0])
    picture = Picture(figsize=(_WIDTH, 0.9 + 0.36 * len(names)), layout="constrained")
    for column, (part, axes) in enumerate(zip(PARTS, picture.subplots(1, 2, sharey=True), strict=True)):
        lengths = [bars[name][column] for name in names]
        axes.barh(names, lengths, height=0.62, color=[_bar_colour(name) for name in names])
        for y, value in enumerate(lengths):
            axes.text(value + 0.012, y, f"{value:.3f}", va="center", color=INK)
        axes.set_title(f"G, {_TITLES[part]}")
        axes.set_xlim(0, 1.08)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
    return picture


def _bar_colour(name: str) -> str:
    if name.startswith("Fairpath"):
        return SERIES[0]
    return INK_SOFT if name.startswith(BAYES) else MUTED


def calibration() -> Picture:
    """Reliability on choices held out of the training data."""
    values = _values("router_ablations")
    curves = []
    for track in TRACKS:
        name = f"held-out choices, {track}, medium"
        bins = [i for i in range(10) if f"{name}, bin {i}: choices" in values]
        confidence, accuracy, counts = (
            np.array([values[f"{name}, bin {i}: {what}"] for i in bins])
            for what in ("confidence", "accuracy", "choices")
        )
        error = values[f"{name}: expected calibration error"]
        curves.append(Reliability(f"{track} (error {error:.3f})", confidence, accuracy, counts.astype(int)))
    return reliability_figure(curves)


def ablations() -> Picture:
    """What new users without choices lose without a part of the graph."""
    figures = _figures("router_ablations")
    names = [name for name in ABLATIONS if name != "nothing"]
    picture = Picture(figsize=(_WIDTH, 1.0 + 0.4 * len(names)), layout="constrained")
    for part, axes in zip(PARTS, picture.subplots(1, 2, sharex=True, sharey=True), strict=True):
        for y, name in enumerate(names):
            label = _ABLATION.format(part=part, name=name)
            difference = figures[f"{label}, less the whole"]
            axes.plot(difference.interval or (np.nan, np.nan), (y, y), color=SERIES[0], linewidth=2)
            axes.plot(difference.value, y, "o", color=SERIES[0])
        axes.axvline(0.0, color=INK_SOFT, linewidth=1.2, linestyle=_DASHED)
        axes.set_yticks(range(len(names)), [f"without {name}" for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_title(f"change in G: {_TITLES[part]}")
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "router_new_users": new_users,
    "router_warm": warm,
    "router_calibration": calibration,
    "router_ablations": ablations,
}


def _comparisons() -> dict[str, Comparison]:
    return {one.name: one for one in read_measurements("personal_router") if isinstance(one, Comparison)}


def _values(target: str) -> dict[str, float]:
    return {name: figure.value for name, figure in _figures(target).items()}


def _figures(target: str) -> dict[str, Figure]:
    return {one.name: one for one in read_measurements(target) if isinstance(one, Figure)}


if __name__ == "__main__":
    sys.exit(main())
