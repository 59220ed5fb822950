"""Picture of docs/scale.md from the points of the last `make bench-scale`."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
from harness import ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter
from scale_model import Constants, Job, Point, foretell, stored

from jobs.report.style import INK_SOFT, RC, SERIES, SURFACE

FIGURES = ROOT / "docs" / "figures"
_OF_NODES = 31.0  # stored edges per node


def draw() -> None:
    """Draw what was measured, and the model through it."""
    points, known = stored()
    FIGURES.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC | {"savefig.facecolor": SURFACE, "axes.facecolor": SURFACE}):
        picture = Picture(figsize=(10.0, 6.8), layout="constrained")
        panels = picture.subplots(2, 2)
        _by_size(panels[0, 0], points, known)
        _exchange(panels[0, 1], points, known)
        _by_sources(panels[1, 0], points)
        _memory(panels[1, 1], points)
        picture.savefig(FIGURES / "scale.svg", metadata={"Date": None, "Creator": None})


def _one_per_graph(points: list[Point]) -> list[Point]:
    """The point with the most sources of each graph."""
    return list({point.scale: point for point in points}.values())


def _curve(
    points: list[Point], known: Constants, of: Callable[[Job], float]
) -> tuple[np.ndarray, list[float]]:
    edges = np.geomspace(points[0].n_edges / 2, 20 * points[-1].n_edges, 60)
    share = points[-1].limit_bytes / points[-1].graph_bytes
    jobs = [Job(m / _OF_NODES, m, 20_000, 2, share * (4 * m + 9 * m / _OF_NODES)) for m in edges]
    return edges, [of(job) for job in jobs]


def _by_size(axes: Axes, points: list[Point], known: Constants) -> None:
    measured = _one_per_graph(points)
    for color, label, name in (
        (SERIES[0], "in parts, on Spark", "partitioned"),
        (SERIES[1], "in memory", "in_memory"),
    ):
        edges, curve = _curve(
            points,
            known,
            lambda job, name=name: (
                1e9 * getattr(foretell(job, known), f"{name}_core_s") / foretell(job, known).moves
            ),
        )
        axes.plot(edges, curve, color=color)
        axes.plot(
            [point.n_edges for point in measured],
            [getattr(point, f"{name}_ns") for point in measured],
            "o",
            color=color,
            label=label,
        )
    _edges_axis(axes, measured)
    axes.set_ylim(0)
    axes.set_title("CPU time per move, ns\ndots measured; lines: model from the two smaller graphs")
    axes.legend()


def _exchange(axes: Axes, points: list[Point], known: Constants) -> None:
    measured = _one_per_graph(points)
    edges, curve = _curve(
        points, known, lambda job: foretell(job, known).exchanged_bytes / foretell(job, known).moves
    )
    axes.plot(edges, curve, color=SERIES[0])
    axes.plot(
        [p.n_edges for p in measured], [p.exchanged_bytes / p.moves for p in measured], "o", color=SERIES[0]
    )
    _edges_axis(axes, measured)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_title("bytes exchanged per move")


def _edges_axis(axes: Axes, measured: list[Point]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.set_xlabel("stored edges")
    for point in measured:
        axes.axvline(point.n_edges, color=INK_SOFT, linewidth=0.5, linestyle=":")


def _count(value: float, _: int) -> str:
    """Tick label, such as ``10M``; the pictures' style knows no mathematics."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _by_sources(axes: Axes, points: list[Point]) -> None:
    largest = [point for point in points if point.scale == points[-1].scale]
    sources = [point.n_sources for point in largest]
    for color, label, name in (
        (SERIES[0], "in parts, on Spark", "partitioned_s"),
        (SERIES[1], "in memory", "in_memory_s"),
    ):
        axes.plot(
            sources, [1e3 * getattr(p, name) / p.n_sources for p in largest], "o-", color=color, label=label
        )
    axes.set_ylim(0)
    axes.set_xlim(0)
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.set_xlabel("sources")
    axes.set_title(f"wall time per source on 2^{points[-1].scale} nodes, ms")
    axes.legend()


def _memory(axes: Axes, points: list[Point]) -> None:
    measured = [*_one_per_graph(points)[:-1], *[p for p in points if p.scale == points[-1].scale]]
    labels = [f"2^{p.scale}\n{p.n_sources // 1000}k" for p in measured]
    places = np.arange(len(measured))
    axes.bar(places, [p.graph_bytes / 2**20 for p in measured], color=SERIES[2], label="the graph")
    axes.bar(places, [p.limit_bytes / 2**20 for p in measured], color=SERIES[1], label="allowed")
    axes.bar(
        places, [p.peak_bytes / 2**20 for p in measured], width=0.4, color=SERIES[0], label="peak of a worker"
    )
    axes.set_xticks(places, labels)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_count))
    axes.set_title("memory, MiB (nodes and sources below)")
    axes.legend()


if __name__ == "__main__":
    draw()
