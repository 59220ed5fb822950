"""Parts of a self-contained HTML page: its frame, headline figures, tables, pictures and legends."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from jobs.report.data import Fact
from jobs.report.style import CSS, colour_rules, inline_svg, variable
from ppr.errors import OutputExistsError, ResourceError
from ppr.manifest import full_disk_is_an_error

_GENERATOR = '<meta name="generator" content="fairpath">'
_HEAD_BYTES = 1024  # of a page, which hold the line above


def check_page(path: Path) -> None:
    """Check, before any work, that a page may be written: there is nothing, or a page of this program.

    Raises
    ------
    OutputExistsError
        Something else is there.
    ResourceError
        The folder cannot be written.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ResourceError(f"{path}: cannot be written ({folder} is not a folder that can be)")
    if not path.exists() and not path.is_symlink():
        return
    ours = False
    if path.is_file():
        with path.open("rb") as file:
            ours = _GENERATOR.encode() in file.read(_HEAD_BYTES)
    if not ours:
        raise OutputExistsError(
            f"{path}: exists and is not a page of this program; choose another name or remove it"
        )


def write_page(path: Path, text: str) -> Path:
    """Write a page as one file; a reader never sees half of it.

    Raises
    ------
    OutputExistsError
        Something is there that is not a page of this program.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    check_page(path)
    working = path.with_name(f".{path.name}.new-{os.getpid()}")
    with full_disk_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            working.write_text(text, encoding="utf-8")
            working.replace(path)
        finally:
            working.unlink(missing_ok=True)
    return path


def page(title: str, parts: Iterable[str]) -> str:
    """Document around the parts of a page."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{_GENERATOR}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{colour_rules()}{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def heading(title: str, summary: str) -> str:
    """Heading of the page with the sentences below it."""
    return f"<h1>{escape(title)}</h1>\n<p>{escape(summary)}</p>"


def facts(shown: Iterable[Fact]) -> str:
    """Headline figures as tiles."""
    tiles = (
        f"<div><dt>{escape(fact.label)}</dt><dd>{escape(fact.value)}</dd>"
        + (f'<dd class="note">{escape(fact.note)}</dd>' if fact.note else "")
        + "</div>"
        for fact in shown
    )
    return f'<dl class="facts">{"".join(tiles)}</dl>'


def picture(title: str, text: str, figure: Figure, name: str, description: str, below: str = "") -> str:
    """Section with a picture; ``description`` is for readers who do not see it."""
    svg = inline_svg(figure, name, description)
    return f"<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n<figure>\n{svg}\n</figure>\n{below}"


def section(title: str, text: str, content: str) -> str:
    """Section with any content, given as HTML."""
    return f"<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n{content}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Table of words and figures: the first column reads as words, the others as numbers."""
    head = "".join(f'<th scope="col"{_number(i)}>{escape(column)}</th>' for i, column in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{_number(i)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="figures">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _number(column: int) -> str:
    return ' class="number"' if column else ""


def legend(colours: Mapping[str, str]) -> str:
    """Names beside the colours that they have in the pictures; empty without any."""
    if not colours:
        return ""
    entries = (
        f'<li><span class="dot" style="background:{variable(colour)}"></span>{escape(name)}</li>'
        for name, colour in colours.items()
    )
    return f'<ul class="legend">{"".join(entries)}</ul>'
