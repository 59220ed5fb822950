"""Colours of the page and its pictures, and the conversion of a matplotlib figure to inline SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from io import StringIO
from typing import Any

from matplotlib.figure import Figure

# Name: (light, dark). Pictures are drawn in the light colours; inlined, each becomes a CSS variable of the
# page, so that they follow the reader's colour scheme.
COLOURS: dict[str, tuple[str, str]] = {
    "surface": ("#fcfcfb", "#1a1a19"),
    "ink": ("#0b0b0b", "#f4f4f0"),
    "ink-soft": ("#52514e", "#c3c2b7"),
    "muted": ("#a5a39b", "#7d7b74"),
    "rule": ("#e1e0d9", "#33322f"),
    "series-1": ("#2a78d6", "#3987e5"),
    "series-2": ("#eb6834", "#d95926"),
    "series-3": ("#1baf7a", "#199e70"),
    "series-4": ("#eda100", "#c98500"),
    "series-5": ("#4a3aa7", "#9085e9"),
    "series-6": ("#e87ba4", "#d55181"),
    "series-7": ("#008300", "#3fa34d"),
    "series-8": ("#e34948", "#e66767"),
}
SERIES = tuple(light for name, (light, _) in COLOURS.items() if name.startswith("series"))
SURFACE, INK, INK_SOFT, MUTED, RULE = (
    COLOURS[name][0] for name in ("surface", "ink", "ink-soft", "muted", "rule")
)

RC: dict[Any, Any] = {
    "svg.hashsalt": "fairpath",  # ids inside a picture depend on its content only
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "text.parse_math": False,  # a key may hold dollar signs
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK_SOFT,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK_SOFT,
    "ytick.labelcolor": INK_SOFT,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
}

CSS = """
* { box-sizing: border-box }
body { margin: 0; background: var(--surface); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 48px 24px 72px }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 56px 0 4px; letter-spacing: -.005em }
h3 { font-size: 1rem; margin: 0 }
p { margin: 4px 0 16px; max-width: 72ch; color: var(--ink-soft) }
figure { margin: 16px 0 0; overflow-x: auto }
figure svg { width: 100%; min-width: 640px; height: auto; display: block }
figure svg text { font-family: inherit; paint-order: stroke; stroke: var(--surface); stroke-width: 3px;
  stroke-linejoin: round }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 28px 0 0; padding: 0 }
.facts div { border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px }
.facts dt { font-size: .8rem; color: var(--ink-soft) }
.facts dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums }
.facts dd.note { font-size: .8rem; font-weight: 400; color: var(--ink-soft) }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .85rem; color: var(--ink-soft);
  padding: 0; margin: 12px 0 0; list-style: none }
.legend + .scroll { margin-top: 14px }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .5em }
.users { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 16px }
.user { border: 1px solid var(--rule); border-radius: 10px; padding: 16px }
.scroll { overflow-x: auto }
/* A shadow at each end behind which there is more: covers that scroll along hide it where there is not. */
figure, .scroll { background:
  linear-gradient(to right, var(--surface) 50%, transparent) left / 36px 100% no-repeat local,
  linear-gradient(to left, var(--surface) 50%, transparent) right / 36px 100% no-repeat local,
  linear-gradient(to right, var(--muted), transparent) left / 12px 100% no-repeat scroll,
  linear-gradient(to left, var(--muted), transparent) right / 12px 100% no-repeat scroll }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums }
th { width: 50%; text-align: left; font-weight: 500; color: var(--ink-soft); padding: 6px 12px 4px 0 }
td { padding: 3px 12px 3px 0; border-top: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere }
td.number { text-align: right; padding-right: 0; white-space: nowrap }
table.figures { margin: 0 0 20px }
table.figures caption { text-align: left; font-weight: 600; padding: 8px 0 2px }
table.figures th { width: auto }
table.figures td:first-child { min-width: 10em }
table.figures th.number { text-align: right; padding: 6px 0 4px 16px }
table.figures td.number { padding-left: 16px }
blockquote { margin: 0 0 16px; padding: 2px 0 2px 16px; border-left: 3px solid var(--series-1);
  font-size: 1.1rem }
.reasons { margin: 8px 0 0; font-size: .9rem }
.reasons dt { color: var(--ink-soft); font-size: .8rem; margin-top: 8px }
.reasons dd { margin: 0; overflow-wrap: anywhere }
.hit { color: var(--series-7); font-weight: 600; white-space: nowrap }
.verdict { margin: 24px 0 0; padding: 14px 20px 8px; border-radius: 10px; border: 1px solid var(--rule);
  border-left: 8px solid currentcolor }
.verdict h2 { margin: 0; font-size: 1.6rem }
.verdict ul { margin: 0 0 8px; padding: 0; list-style: none; font-size: .9rem }
.verdict li { padding: 2px 0 2px 1.5em; text-indent: -1.5em; color: var(--ink-soft);
  overflow-wrap: anywhere }
.verdict .broken { color: var(--ink) }
.verdict .mark { display: inline-block; width: 1.5em; text-indent: 0; font-weight: 600;
  color: var(--series-7) }
.verdict .broken .mark { color: var(--series-8) }
.verdict summary { font-size: .9rem; color: var(--ink-soft); cursor: pointer; margin-bottom: 6px }
.verdict .kind { font-size: .85rem; margin-top: -12px }
.verdict.good { color: var(--series-7) }
.verdict.warn { color: var(--series-2) }
.verdict.calm { color: var(--ink-soft) }
.verdict.bad { color: var(--series-8) }
.parameters { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 24px 36px }
@media (max-width: 600px) {
  main { padding: 28px 16px 48px }
  h1 { font-size: 1.6rem }
  h2 { margin-top: 40px }
}
"""


def colour_rules() -> str:
    """CSS variables of both colour schemes."""
    light = ";".join(f"--{name}:{value}" for name, (value, _) in COLOURS.items())
    dark = ";".join(f"--{name}:{value}" for name, (_, value) in COLOURS.items())
    return (
        f":root{{color-scheme:light dark;{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )


def variable(colour: str) -> str:
    """CSS variable of a light colour."""
    return next(f"var(--{name})" for name, (light, _) in COLOURS.items() if light == colour)


def group_colours(groups: Iterable[str]) -> dict[str, str]:
    """Colours of groups: the first eight have their own, the rest share the muted one."""
    names = [group for group in dict.fromkeys(groups) if group]
    return {name: SERIES[i] if i < len(SERIES) else MUTED for i, name in enumerate(names)}


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """SVG element of a figure for an HTML page.

    Parameters
    ----------
    figure
        What to draw, in light colours of :data:`COLOURS`.
    name
        Prefix that keeps the element's ids apart from those of other pictures.
    description
        Text for readers who do not see the picture.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|xlink:href=")#', rf"\g<1>#{name}-", svg)
    svg = re.sub(r"font: ((?:\w+ )*)([\d.]+px) [^;\"]*", _font, svg)
    for variable_name, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{variable_name})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1).strip()


def _font(match: re.Match[str]) -> str:
    """Size and weight of a matplotlib font, without its family."""
    weight = re.search(r"\b(bold|[1-9]00)\b", match[1])
    return f"font-size: {match[2]}" + (f"; font-weight: {weight[0]}" if weight else "")
