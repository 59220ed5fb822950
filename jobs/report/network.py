"""Drawing of one user's neighbourhood: own items, the users who share them, and what those lead to.

Four columns read from left to right, each ordered by the mean position of what it is linked to (the
barycentre heuristic of layered drawing), so that few links cross and no label covers another.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve

from jobs.report.data import FloatArray, IntArray, Neighbour, Neighbourhood
from jobs.report.style import INK, INK_SOFT, MUTED

_COLUMNS = (0.0, 1.05, 2.1, 3.15)
_MIN_SIZE, _MAX_SIZE = 35.0, 150.0  # areas of the dots, points squared


def neighbourhood_figure(picture: Neighbourhood, colours: Mapping[str, str]) -> Figure:
    """Draw a neighbourhood; items are coloured by their group."""
    tallest = max(len(picture.history), len(picture.similar), len(picture.recommended), 1)
    figure = Figure(figsize=(10.0, 1.0 + 0.33 * tallest), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    history_y, similar_y, recommended_y = layered_positions(picture)
    _link_all(axes, picture, colours, history_y, similar_y, recommended_y)
    axes.scatter([_COLUMNS[0]], [0.0], s=260, color=INK, zorder=3)
    axes.text(_COLUMNS[0], -0.075, picture.user, ha="center", va="top", fontsize=9.5)
    _dots(axes, _COLUMNS[1], history_y, picture.history, [_colour(colours, n) for n in picture.history])
    _dots(axes, _COLUMNS[2], similar_y, picture.similar, [INK_SOFT] * len(picture.similar))
    recommended_colours = [_colour(colours, node) for node in picture.recommended]
    _dots(axes, _COLUMNS[3], recommended_y, picture.recommended, recommended_colours)
    for x, heading in zip(_COLUMNS, ("user", "own items", "similar users", "recommended"), strict=True):
        axes.text(x, 0.62, heading, ha="center" if x == 0 else "left", va="center", color=INK_SOFT)
    axes.set_xlim(-0.3, 4.0)
    axes.set_ylim(-0.56, 0.68)
    return figure


def layered_positions(picture: Neighbourhood) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Vertical positions in [-0.5, 0.5] of history, similar users and recommended items.

    History is ordered by group and then by score; the other two by the mean position of their neighbours
    in the column to the left.
    """
    groups = [node.group for node in picture.history]
    scores = [-node.score for node in picture.history]
    history = _spread(np.lexsort((scores, groups)))
    similar = _spread(_by_barycentre(history, picture.history_links, len(picture.similar)))
    recommended = _spread(_by_barycentre(similar, picture.recommended_links, len(picture.recommended)))
    return history, similar, recommended


def _by_barycentre(left: FloatArray, links: IntArray, n_right: int) -> npt.NDArray[np.intp]:
    """Order, from the top, of the right column's nodes by the mean position of their left neighbours."""
    degree = np.bincount(links[:, 1], minlength=n_right)
    total = np.bincount(links[:, 1], weights=left[links[:, 0]], minlength=n_right)
    return np.argsort(-total / np.maximum(degree, 1), kind="stable")


def _spread(order: npt.NDArray[np.intp]) -> FloatArray:
    """Evenly spaced positions from the top down, in the given order."""
    positions = np.empty(len(order))
    positions[order] = 0.5 - (np.arange(len(order)) + 0.5) / max(len(order), 1)
    return positions


def _link_all(
    axes: Axes,
    picture: Neighbourhood,
    colours: Mapping[str, str],
    history_y: FloatArray,
    similar_y: FloatArray,
    recommended_y: FloatArray,
) -> None:
    """Links of all columns, in the colour of the item at their end."""
    for node, y in zip(picture.history, history_y, strict=True):
        _link(axes, (_COLUMNS[0], 0.0), (_COLUMNS[1], y), _colour(colours, node))
    for item, user in picture.history_links:
        start, end = (_COLUMNS[1], history_y[item]), (_COLUMNS[2], similar_y[user])
        _link(axes, start, end, _colour(colours, picture.history[item]))
    for user, item in picture.recommended_links:
        start, end = (_COLUMNS[2], similar_y[user]), (_COLUMNS[3], recommended_y[item])
        _link(axes, start, end, _colour(colours, picture.recommended[item]))


def _link(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    """Draw a curve that leaves and arrives level."""
    middle = (start[0] + end[0]) / 2
    points = [start, (middle, start[1]), (middle, end[1]), end]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, alpha=0.35, linewidth=1.1, zorder=1))


def _dots(
    axes: Axes, x: float, positions: FloatArray, nodes: tuple[Neighbour, ...], colours: list[str]
) -> None:
    """Dots whose area grows with the score, each with its key to the right."""
    if not nodes:
        return
    scores = np.array([max(node.score, 0.0) for node in nodes])
    size = _MIN_SIZE + (_MAX_SIZE - _MIN_SIZE) * scores / max(scores.max(), 1e-12)
    axes.scatter(np.full(len(nodes), x), positions, s=size, c=colours, zorder=3)
    for node, y in zip(nodes, positions, strict=True):
        label = f"{node.key}  ✓" if node.held_out else node.key
        axes.text(x + 0.05, y, label, va="center", fontsize=9, zorder=4)


def _colour(colours: Mapping[str, str], node: Neighbour) -> str:
    return colours.get(node.group, MUTED)
