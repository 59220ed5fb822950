"""Picture of docs/figures from the last `make bench-peers`: accuracy against time, a curve a method."""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib
from harness import RESULTS, ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jobs.report.style import INK, INK_SOFT, RC, SERIES, SURFACE

CURVES = RESULTS / "peers_curves.json"
PATH = ROOT / "docs" / "figures" / "peers.svg"
STYLES = {
    "Fairpath": (SERIES[0], "o", "-"),
    "Fairpath, steps limited": (SERIES[0], "o", (0, (2, 1.5))),
    "scipy power iteration": (INK, "s", "-"),
    "numba push": (INK_SOFT, "v", "-"),
    "numba push, residuals added": (INK_SOFT, "^", (0, (2, 1.5))),
    "torch-ppr": (SERIES[1], "s", "-"),
    "scikit-network": (SERIES[2], "D", "-"),
    "PyG": (SERIES[3], "v", "-"),
    "networkit": (SERIES[4], "^", "-"),
    "igraph": (SERIES[5], "P", "-"),
    "GraphFrames": (SERIES[7], "X", "-"),
}
_FLOOR = 2e-4  # what is closer to the truth is drawn here
_GOAL = 0.01


def main() -> int:
    """Draw what was measured; 1 where nothing was."""
    if not CURVES.exists():
        print(f"not drawn: {PATH.name} (nothing was measured)", file=sys.stderr)
        return 1
    PATH.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC | {"savefig.facecolor": SURFACE, "axes.facecolor": SURFACE}):
        _picture(json.loads(CURVES.read_text())).savefig(PATH, metadata={"Date": None, "Creator": None})
    print(PATH.relative_to(ROOT))
    return 0


def _picture(curves: dict[str, list[dict[str, Any]]]) -> Picture:
    picture = Picture(figsize=(10.0, 8.4), layout="constrained")
    panels = picture.subplots(2, 2, sharey=True).flat
    for axes, (graph, lines) in zip(panels, curves.items(), strict=False):
        for line in lines:
            _draw(axes, line)
        axes.axhline(_GOAL, color=INK_SOFT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.set_title(graph)
        axes.set(xscale="log", yscale="log", ylim=(_FLOOR / 1.5, 1.0))
        axes.xaxis.set_major_locator(LogLocator(10.0, numticks=12))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(NullFormatter())
    for axes in picture.axes[2:]:
        axes.set_xlabel("ms per source on one core")
    for axes in picture.axes[::2]:
        axes.set_ylabel("1 - RAG@50 (below: better)")
    handles = {label: handle for axes in picture.axes for handle, label in zip(*_legend(axes), strict=True)}
    names = [name for name in STYLES if name in handles]
    picture.legend([handles[name] for name in names], names, loc="outside lower center", ncols=4)
    return picture


def _draw(axes: Axes, line: dict[str, Any]) -> None:
    """Draw the curve of a method, and around the setting at which it was timed, a ring."""
    colour, marker, style = STYLES[line["name"]]
    ours = line["name"].startswith("Fairpath")
    x = [one["ms"] for one in line["tries"]]
    y = [max(1.0 - one["rag"], _FLOOR) for one in line["tries"]]
    width, order = (2.6, 5) if ours else (1.5, 3)
    axes.plot(
        x, y, marker=marker, color=colour, linestyle=style, linewidth=width, label=line["name"], zorder=order
    )
    if timed := line["chosen"]:
        at = timed["ms"], max(1.0 - timed["rag"], _FLOOR)
        axes.plot(*at, "o", markersize=11, markerfacecolor="none", markeredgecolor=colour, zorder=order)


def _legend(axes: Axes) -> tuple[list[Any], list[str]]:
    return axes.get_legend_handles_labels()


if __name__ == "__main__":
    sys.exit(main())
