"""Pictures of the choice of LLMs: what is drawn must be what the data say."""

from __future__ import annotations

import numpy as np

from jobs.report import ModelShares, RouterReport, SupportCurves, TrainingCurve, UserMap
from jobs.report.router_figures import map_figure, shares_figure, support_figure, training_figure
from jobs.report.router_page import router_sections


def test_shares_are_cells_with_their_numbers_and_darker_the_larger() -> None:
    shares = np.array([[0.75, 0.25, 0.0], [0.1, 0.2, 0.7]])
    table = ModelShares("by task", ("code", "facts"), ("a", "b", "c"), shares)
    (axes,) = shares_figure([table]).axes
    assert [text.get_text() for text in axes.texts] == ["75 %", "25 %", "0 %", "10 %", "20 %", "70 %"]
    shades = [patch.get_alpha() for patch in axes.patches]
    assert np.argsort(shades).tolist() == np.argsort(shares.ravel()).tolist()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["code", "facts"]


def test_support_curves_draw_means_ours_first() -> None:
    means = {"counts": np.array([0.4, 0.5]), "Fairpath, router": np.array([0.4, 0.8])}
    errors = {name: np.array([0.01, np.nan]) for name in means}
    curve = SupportCurves("new users", ("0", "1-3"), np.array([1200, 30]), means, errors)
    (axes,) = support_figure([curve], "gap closed").axes
    assert [line.get_label() for line in axes.lines] == ["Fairpath, router", "counts"]
    for line in axes.lines:
        np.testing.assert_array_equal(line.get_ydata(), means[str(line.get_label())])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\n1,200", "1-3\n30"]


def test_the_map_has_every_user_once_per_colouring() -> None:
    points = np.random.default_rng(0).normal(size=(30, 2))
    groups = tuple("abc"[i % 3] for i in range(30))
    figure = map_figure(UserMap(points, (0.6, 0.3), {"persona": groups, "model": groups[::-1]}))
    for axes, names in zip(figure.axes, (groups, groups[::-1]), strict=True):
        drawn = {str(dots.get_label()): np.asarray(dots.get_offsets()) for dots in axes.collections}
        for name, dots in drawn.items():
            np.testing.assert_array_equal(dots, points[np.array(names) == name])
        assert sum(map(len, drawn.values())) == 30


def test_training_draws_held_out_choices_where_they_were_measured() -> None:
    steps = np.arange(4)
    held_out = np.array([np.nan, -1.2, np.nan, -1.0])
    left, right = training_figure(TrainingCurve(steps, -1.0 * steps, 0.1 * steps, held_out)).axes
    np.testing.assert_array_equal(left.lines[1].get_xdata(), [1, 3])
    np.testing.assert_array_equal(left.lines[1].get_ydata(), [-1.2, -1.0])
    np.testing.assert_array_equal(right.lines[0].get_ydata(), 0.1 * steps)
    never = TrainingCurve(steps, -1.0 * steps, 0.1 * steps, np.full(4, np.nan))
    assert len(training_figure(never).axes[0].lines) == 1


def test_parts_that_are_empty_are_left_out() -> None:
    assert list(router_sections(RouterReport(note="nothing"))) == []


def test_curves_without_bins_are_left_out() -> None:
    nothing = {"Fairpath, router": np.zeros(0)}
    empty = SupportCurves("new users", (), np.zeros(0, dtype=np.int64), nothing, nothing)
    one = {"Fairpath, router": np.array([0.5])}
    full = SupportCurves("known users", ("4-9",), np.array([7]), one, one)
    assert not list(router_sections(RouterReport(curves=(empty,), curves_label="gap closed")))
    (section,) = router_sections(RouterReport(curves=(empty, full), curves_label="gap closed"))
    assert "known users" in section
    assert "new users" not in section
