"""The HTML page around the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import matplotlib

from jobs.report import figures, html
from jobs.report.data import Neighbour, ReportData, UserCard
from jobs.report.network import neighbourhood_figure
from jobs.report.router_page import router_sections, training_section
from jobs.report.style import RC, group_colours, variable


def write_report(path: Path, data: ReportData) -> Path:
    """Write the report as one self-contained HTML file; a reader never sees half of it.

    Raises
    ------
    ResourceError
        The disk is full or the folder cannot be written.
    """
    return html.write_page(path, render_report(data))


def render_report(data: ReportData) -> str:
    """HTML of the report; equal data give equal text."""
    colours = group_colours(_groups(data))
    with matplotlib.rc_context(RC):
        return html.page(data.title, _sections(data, colours))


def _sections(data: ReportData, colours: Mapping[str, str]) -> Iterator[str]:
    yield html.heading(data.title, data.summary)
    if data.facts:
        yield html.facts(data.facts)
    if data.quality:
        yield html.picture(
            "Quality of the recommendations",
            data.quality_note,
            figures.quality_figure(data.quality_metrics, data.quality),
            "quality",
            figures.quality_text(data.quality_metrics, data.quality),
        )
    if data.neighbourhood:
        yield html.picture(
            f"The neighbourhood of {data.neighbourhood.user}",
            "From the user's items to other users who share them, and on to what is recommended. The larger "
            "a dot, the larger its score; ✓ marks a recommendation found in the held-out part.",
            neighbourhood_figure(data.neighbourhood, colours),
            "neighbourhood",
            f"Layered network drawing of {data.neighbourhood.user}: {len(data.neighbourhood.history)} own "
            f"items, {len(data.neighbourhood.similar)} similar users, "
            f"{len(data.neighbourhood.recommended)} recommended items.",
            html.legend(colours),
        )
    if data.users:
        yield _users(data, colours)
    if data.router:
        yield from router_sections(data.router)
    if data.training and len(data.training.steps):
        yield training_section(data.training)
    yield from _measurements(data)
    if data.parameters:
        yield _parameters(data)


def _measurements(data: ReportData) -> Iterator[str]:
    """Pictures of the graph and of the estimator."""
    if data.degrees:
        yield html.picture(
            "Degrees",
            "Long tails: most nodes have few edges, a few have very many. Both axes are logarithmic.",
            figures.degree_figure(data.degrees),
            "degrees",
            "Share of nodes with at least a given degree, by kind: "
            + ", ".join(f"{kind} up to {int(d.max(initial=0)):,}" for kind, d in data.degrees.items()),
        )
    if data.accuracy:
        yield html.picture(
            "Accuracy against the number of walks",
            "Mean over sampled sources, against the exact solution; the bands hold the middle 80 % of the "
            "sources. The source itself is left out of RAG.",
            figures.accuracy_figure(data.accuracy),
            "accuracy",
            "; ".join(
                f"{curve.label}: RAG@50 {curve.rag[-1].mean():.3f} at {curve.n_walks[-1]:,} walks"
                for curve in data.accuracy
            ),
        )
    if data.cost:
        yield html.picture(
            "Time per step",
            "Measured on this machine with one thread, compilation excluded.",
            figures.cost_figure(data.cost),
            "cost",
            "; ".join(f"{curve.label}: {curve.ms_per_source[-1]:.2f} ms per source" for curve in data.cost),
        )
    if len(data.actual_moves):
        yield html.picture(
            "Work per block",
            "Sources are cut into blocks of about equal predicted work: a block is what is scheduled. The "
            "prediction is for independent walks; packets save moves where they can share an edge.",
            figures.work_figure(data.predicted_moves, data.actual_moves),
            "work",
            f"{len(data.actual_moves)} blocks, {int(data.actual_moves.sum()):,} moves in all.",
        )


def _users(data: ReportData, colours: Mapping[str, str]) -> str:
    cards = "\n".join(_user(card, colours) for card in data.users)
    return (
        "<h2>Recommendations</h2>\n<p>What a few users had chosen, the heaviest first, and what is "
        "recommended to them, best first; ✓ marks what was indeed chosen later.</p>\n"
        f'<div class="users">\n{cards}\n</div>'
    )


def _user(card: UserCard, colours: Mapping[str, str]) -> str:
    rows = []
    for i in range(max(len(card.history), len(card.recommended))):
        left = _item(card.history[i], colours) if i < len(card.history) else ""
        right = _item(card.recommended[i], colours) if i < len(card.recommended) else ""
        rows.append(f"<tr><td>{left}</td><td>{right}</td></tr>")
    return (
        f'<div class="user scroll"><h3>{escape(card.user)}</h3><table><thead><tr><th scope="col">history</th>'
        f'<th scope="col">recommended</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _item(node: Neighbour, colours: Mapping[str, str]) -> str:
    dot = ""
    if node.group in colours:
        style = f"background:{variable(colours[node.group])}"
        dot = f'<span class="dot" style="{style}" title="{escape(node.group)}"></span>'
    hit = ' <span class="hit" title="chosen later">✓</span>' if node.held_out else ""
    return f"{dot}{escape(node.key)}{hit}"


def _parameters(data: ReportData) -> str:
    tables = []
    for group, values in data.parameters.items():
        rows = "".join(
            f'<tr><td>{escape(name)}</td><td class="number">{escape(value)}</td></tr>'
            for name, value in values.items()
        )
        head = f'<thead><tr><th scope="col" colspan="2">{escape(group)}</th></tr></thead>'
        tables.append(f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>')
    return f'<h2>Parameters and versions</h2>\n<div class="parameters">{"".join(tables)}</div>'


def _groups(data: ReportData) -> Iterator[str]:
    """Yield the groups in the order in which they deserve a colour of their own."""
    if data.neighbourhood:
        for node in (*data.neighbourhood.recommended, *data.neighbourhood.history):
            yield node.group
    for card in data.users:
        for node in (*card.recommended, *card.history):
            yield node.group
