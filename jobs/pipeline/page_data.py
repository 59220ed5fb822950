"""What a run's page tells of the data, and of the fingerprints made from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jobs.pipeline import page_figures as figures
from jobs.report import html

_COLUMNS = ("rows", "training", "held_out", "later", "erased", "kept")
_LEVELS = {"steady": "", "notable": "notable", "strong": "strong"}


def deliveries_sections(report: Mapping[str, Any]) -> Iterator[str]:
    """What was delivered, and what of it takes part."""
    if deliveries := report.get("deliveries"):
        counts = _ordered(name for one in deliveries for name, n in one.items() if _is_count(n))
        rows = [
            (one["name"], one["kind"], *(f"{one[name]:,}" if name in one else "-" for name in counts))
            for one in deliveries
        ]
        yield html.section(
            "Deliveries",
            "Rows of each file: those kept take part; later ones lie beyond the data interval, erased ones "
            "are of users who asked to be forgotten.",
            html.table(("file", "kind", *counts), rows),
        )
    collected = report.get("collected") or {}
    if tables := collected.get("tables"):
        names = _ordered(name for counts in tables.values() for name in counts)
        rows = [
            (kind, *(f"{counts[name]:,}" if name in counts else "-" for name in names))
            for kind, counts in tables.items()
        ]
        yield html.table(("together", *(name.replace("_", " ") for name in names)), rows)


def _ordered(names: Iterable[str]) -> list[str]:
    """Each name once, those that have a place of their own first."""
    return sorted(set(names), key=lambda name: (_COLUMNS.index(name) if name in _COLUMNS else 99, name))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def data_sections(report: Mapping[str, Any]) -> Iterator[str]:
    """What the data are like, and how they differ from the last run's."""
    if (described := report.get("description")) is None:
        return
    drift, before = report.get("drift"), report.get("before")
    if drift is None:
        shares = {
            f"{part}.{name}": {"now": each}
            for part, told in described.items()
            if told is not None
            for name, each in told["shares"].items()
        }
        note = "There is no run before this one to compare with."
        spreads = {
            f"{part}.{name}": {"now": told[name], "before": None}
            for part, told in described.items()
            if told is not None
            for name in told
            if name.startswith("per_")
        }
    else:
        shares, spreads = drift["shares"], drift["quantiles"]
        note = f"Compared with the run {before}." if before else "Compared with the run before."
        note += (
            " Beyond .1 an index of stability (PSI) is notable, beyond .25 strong; a count from a change of "
            "20 %, and of 50 %. This is for a person to judge: only counts that collapse stop a release."
        )
    yield html.section("Data", note, "" if drift is None else _counts(drift))
    in_pairs = sorted(shares.items(), key=lambda each: each[0].partition(",")[0])  # all rows, the newest
    titled = [(_share_title(name, shift), shift) for name, shift in in_pairs if shift["now"]]
    if titled:
        yield html.picture(
            "Who and what the rows are of",
            "Shares of all rows, and of the newest seven days.",
            figures.shares_figure(titled),
            "shares",
            "; ".join(title.replace("\n", ": ") for title, _ in titled),
        )
    if spreads:
        lines = [(_spread_title(name), each["now"], each["before"]) for name, each in spreads.items()]
        yield html.picture(
            "How much there is of each",
            "Quantiles of the number of rows, on a logarithmic scale.",
            figures.spread_figure(lines),
            "spread",
            "; ".join(f"{title}: median {now[3]:g}, most {now[-1]:g}" for title, now, _ in lines),
        )


def _counts(drift: Mapping[str, Any]) -> str:
    rows = []
    for name, change in drift["counts"].items():
        ratio = "new" if change["ratio"] is None else f"{change['ratio'] - 1:+.1%}"
        part, _, what = name.partition(".")
        shown = part if what == "rows" else f"{what} with {part}" if what == "users" else what
        rows.append((shown, f"{change['before']:,}", f"{change['now']:,}", ratio, _LEVELS[change["level"]]))
    for part, told in drift["new_users"].items():
        rows.append(
            (f"new among the week's users with {part}", f"{told['before']:.1%}", f"{told['now']:.1%}", "", "")
        )
    return html.table(("", "last run", "this run", "change", ""), rows)


def _share_title(name: str, shift: Mapping[str, Any]) -> str:
    words = {
        "interactions.popularity": "items by popularity",
        "choices.llms": "LLMs chosen",
        "choices.tasks": "tasks asked",
    }
    key, comma, newest = name.partition(",")
    title = f"{words.get(key, key)}{comma}{newest}"
    if "psi" not in shift:
        return title
    level = "" if shift["level"] == "steady" else f", {shift['level']}"
    return f"{title}\nPSI {shift['psi']:.3f}{level}"


def _spread_title(name: str) -> str:
    part, _, per = name.partition(".per_")
    return f"{part} per {per}"


def fingerprint_section(report: Mapping[str, Any]) -> Iterator[str]:
    """What the fingerprints go on from, and how exact they are."""
    if (made := report.get("fingerprints")) is None:
        return
    share = made["recomputed"] / made["rows"]
    rows = [("rows", f"{made['rows']:,}"), ("computed anew", f"{made['recomputed']:,} ({share:.1%})")]
    if made["rows_changed"] is not None:
        rows.append(("nodes whose edges changed", f"{made['rows_changed']:,}"))
    if made["base"] is not None:
        rows.append(("a true row moved since, at most", f"{made['largest_bound']:.4f}"))
        rows.append(("on average, at most", f"{made['mean_bound']:.4f}"))
    if made["removed_nodes"]:
        gone = made["removed_nodes"] / made["nodes"]
        rows.append(("ids of nodes that are gone", f"{made['removed_nodes']:,} ({gone:.1%})"))
    yield html.section("Fingerprints", _way(made), html.table(("", "of this run"), rows))


def _way(made: Mapping[str, Any]) -> str:
    """In which way they were made, in a sentence or two."""
    base, why = made["base"], made["why"]
    if base is None or why is not None:
        why = why or "made in full"
        return f"{why[:1].upper()}{why[1:]}."
    if not made["recomputed"] and not made["rows_changed"]:
        return f"Those of the run {base}: nothing in the graph has changed since."
    return (
        f"Refreshed: they go on from the run {base}. A row was computed anew where the true one may have "
        f"moved by more than {made['tolerance']:g} since (as a sum of absolute differences; a row sums to at "
        "most 1). The others are as they were."
    )
