"""Sections of the page about the choice of LLMs."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from jobs.report import figures, html, router_figures
from jobs.report.data import ModelShares, RoutedUser, RouterReport, SupportCurves, TrainingCurve


def router_sections(router: RouterReport) -> Iterator[str]:
    """Sections in the order of the page."""
    if router.quality:
        yield html.picture(
            "Choice of model",
            router.note,
            figures.quality_figure(router.quality_metrics, router.quality),
            "router-quality",
            figures.quality_text(router.quality_metrics, router.quality),
        )
    if router.users:
        yield _question(router)
    if router.shares:
        yield html.picture(
            "Who gets which model",
            "Share of each model among the router's choices, over all users and one question of each task.",
            router_figures.shares_figure(router.shares),
            "router-shares",
            "; ".join(_shares_text(table) for table in router.shares),
        )
    curves = [curve for curve in router.curves if curve.bins]  # few users: no bin has enough of them
    if curves:
        yield html.picture(
            "How much it takes to know a user",
            "Mean over users with its 95 % interval. A user without choices is known by the graph alone.",
            router_figures.support_figure(curves, router.curves_label),
            "router-support",
            "; ".join(_curves_text(curve) for curve in curves),
        )
    if (users := router.user_map) is not None:
        yield html.picture(
            "Map of the users",
            "Each mark is a user: the vector that the router infers from what it knows of the user, in the "
            "two directions in which users differ most.",
            router_figures.map_figure(users),
            "router-map",
            f"Scatter plot of {len(users.points):,} users' vectors, coloured by "
            + " and by ".join(users.colourings),
        )


def training_section(curve: TrainingCurve) -> str:
    """How the training went."""
    return html.picture(
        "Training of the router",
        "The divergence is what the model holds beyond its prior. It jumps where the one Gaussian that all "
        "users were drawn from gives way to several tastes.",
        router_figures.training_figure(curve),
        "router-training",
        f"{curve.steps[-1]:,} steps: log-likelihood from {curve.log_likelihood[0]:.3f} to "
        f"{curve.log_likelihood[-1]:.3f} nats per choice",
    )


def _question(router: RouterReport) -> str:
    cards = "\n".join(_card(user) for user in router.users)
    return (
        f"<h2>The same question, different models</h2>\n<p>{escape(router.question_note)}</p>\n"
        f'<blockquote>{escape(router.question)}</blockquote>\n<div class="users">\n{cards}\n</div>'
    )


def _card(user: RoutedUser) -> str:
    reasons = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(sentence)}</dd>" for label, sentence in user.reasons
    )
    return (
        f'<div class="user"><h3>{escape(user.user)} gets {escape(user.model)}</h3>'
        f'<dl class="reasons">{reasons}</dl></div>'
    )


def _shares_text(table: ModelShares) -> str:
    best = table.shares.argmax(axis=1)
    rows = (
        f"{row} mostly {table.models[i]} ({100 * shares[i]:.0f} %)"
        for row, i, shares in zip(table.rows, best, table.shares, strict=True)
    )
    return f"{table.title}: " + ", ".join(rows)


def _curves_text(curve: SupportCurves) -> str:
    lines = (
        f"{name} from {mean[0]:.3f} at {curve.bins[0]} to {mean[-1]:.3f} at {curve.bins[-1]}"
        for name, mean in curve.means.items()
    )
    return f"{curve.title}: " + ", ".join(lines)
