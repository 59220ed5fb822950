"""The page of a run, from the content of its ``report.json``.

A key that is absent or None leaves its part out. What is read::

    run            name of the run
    until          end of the data interval (ISO 8601), or None
    started        ISO 8601
    seconds        of the whole run
    state          "published" | "refused" | "nothing new" | "done" (nothing to publish) | "failed"
    error          {"step", "type", "text"} of the step that failed
    deliveries     [{"name", "kind", and counts of rows}]
    collected      {"tables": {kind: counts}, "late", "retired_llms", "feedback_left_out"}
    description    of drift.describe
    drift          of drift.drift, against the last run
    fingerprints   {"base": run or None, "why", "rows", "recomputed", "rows_changed", "tolerance",
                   "largest_bound", "mean_bound", "nodes", "removed_nodes"}
    before         name of that run
    evaluation     of evaluation.evaluate
    decision       of gate.Decision.to_json
    release        version that was published, or else is served
    steps          [{"step", "state": "done"|"kept"|"failed"|"not run", "seconds", "peak_bytes", "bytes"}]
    releases       [{"version", "created", "bytes", "current": bool}], ascending
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

from jobs.pipeline import page_figures as figures
from jobs.pipeline.gate import METRICS
from jobs.pipeline.page_data import data_sections, deliveries_sections, fingerprint_section
from jobs.pipeline.page_figures import bytes_text, seconds_text
from jobs.report import Fact, html
from jobs.report.style import RC

Report = Mapping[str, Any]
_VERDICTS = {
    "published": ("good", "Published"),
    "refused": ("warn", "Not published"),
    "nothing new": ("calm", "Nothing new"),
    "done": ("calm", "Done"),
    "failed": ("bad", "Failed"),
}
_METRIC_TITLES = {
    "log_likelihood": "log-likelihood, nats",
    "accuracy": "accuracy of choices",
    "ndcg": "NDCG@{k} of items",
    "recall": "recall@{k} of items",
}

_LEFT_OUT = {
    "thumbs_down": "with a thumb down",
    "beyond_the_sample": "of users beyond the sample",
    "unforeseeable": "of LLMs that no release offers",
    "unknown_items": "of items that no release knows",
    "seen_by_candidate": "repeats of what the candidate was trained on",
    "seen_by_current": "repeats of what the current release was trained on",
}


def write_page(path: Path, report: Report) -> Path:
    """Write the page of a run as one self-contained file; a reader never sees half of it.

    Raises
    ------
    OutputExistsError
        Something is there that is not a page of this program.
    ResourceError
        The disk is full or the folder cannot be written.
    """
    return html.write_page(path, render_page(report))


def render_page(report: Report) -> str:
    """HTML of the page; equal reports give equal text."""
    title = f"Run {report['run']}"
    with matplotlib.rc_context(RC):
        return html.page(title, _parts(title, report))


def _parts(title: str, report: Report) -> Iterator[str]:
    yield html.heading(title, _summary(report))
    yield _verdict(report)
    if shown := list(_facts(report)):
        yield html.facts(shown)
    yield from _evaluation(report)
    yield from deliveries_sections(report)
    yield from data_sections(report)
    yield from fingerprint_section(report)
    if steps := report.get("steps"):
        yield html.picture(
            "Steps",
            "Time, most memory and size on disk of each step; a dash: not known, or nothing there.",
            figures.steps_figure(steps),
            "steps",
            "; ".join(_step_text(step) for step in steps),
            "".join(
                f"<p>{escape(step['step'])}: {escape(step['why'])}</p>" for step in steps if step.get("why")
            ),
        )
    if releases := report.get("releases"):
        yield html.section(
            "Releases",
            "The newest first. 'fairpath releases' shows more of them, and goes back to one.",
            html.table(
                ("release", "", "made", "size"),
                [
                    (
                        one["version"],
                        "current" if one["current"] else "",
                        _time(one["created"]),
                        bytes_text(one["bytes"]),
                    )
                    for one in reversed(releases)
                ],
            ),
        )


def _summary(report: Report) -> str:
    until = report.get("until")
    text = "Data up to the run" if until is None else f"Data until {_time(until)}"
    if (started := report.get("started")) is not None:
        text += f"; started {_time(started)}"
    if (seconds := report.get("seconds")) is not None:
        text += f", took {seconds_text(seconds)}"
    return f"{text}."


def _verdict(report: Report) -> str:
    """What came of the run, in a word and in colour, with the reasons."""
    kind, word = _VERDICTS[report["state"]]
    decision, error = report.get("decision"), report.get("error")
    about = ""
    if error is not None:
        about = f"Step {error['step']}: {error['text']}"
    elif report["state"] == "published":
        about = f"Release {report.get('release')} is served from now on."
        if decision is not None and not all(reason["passed"] for reason in decision["reasons"]):
            kind, about = "warn", f"{about} It does not keep all rules."
    elif report["state"] == "refused":
        about = "The candidate does not keep the rule. "
        about += f"Release {report['release']} stays." if report.get("release") else "Nothing is served yet."
    elif report["state"] == "nothing new":
        about = f"The candidate is what is served already: release {report.get('release')}."
    elif decision is None:
        about = "No candidate came of this run."
    reasons = "" if decision is None or report["state"] == "nothing new" else _reasons(decision)
    detail = f'<p class="kind">{escape(error["type"])}</p>' if error and error.get("type") else ""
    return (
        f'<section class="verdict {kind}"><h2>{escape(word)}</h2><p>{escape(about)}</p>{detail}{reasons}'
        "</section>"
    )


def _reasons(decision: Mapping[str, Any]) -> str:
    """The rules: those that were not kept, and the others to be unfolded where there are any of the first."""
    broken = [reason for reason in decision["reasons"] if not reason["passed"]]
    kept = [reason for reason in decision["reasons"] if reason["passed"]]
    if not broken:
        return _list(kept)
    if not kept:
        return _list(broken)
    summary = f"{len(kept)} more rules are kept" if len(kept) > 1 else "one more rule is kept"
    return f"{_list(broken)}<details><summary>{summary}</summary>{_list(kept)}</details>"


def _list(reasons: Sequence[Mapping[str, Any]]) -> str:
    entries = (
        f'<li class="{"kept" if reason["passed"] else "broken"}">'
        f'<span class="mark" title="{"kept" if reason["passed"] else "not kept"}">'
        f"{'✓' if reason['passed'] else '✗'}</span>{escape(reason['text'])}</li>"
        for reason in reasons
    )
    return f"<ul>{''.join(entries)}</ul>"


def _facts(report: Report) -> Iterator[Fact]:
    described = report.get("description") or {}
    for part, names in (("interactions", ("users", "items")), ("choices", ("users", "queries"))):
        if (told := described.get(part)) is not None:
            note = ", ".join(f"{told[name]:,} {name}" for name in names)
            yield Fact(part, f"{told['rows']:,}", note)
    choices = (report.get("evaluation") or {}).get("choices")
    if choices is not None and (found := choices["metrics"]["accuracy"])["candidate"] is not None:
        popular = found["popularity"]["mean"]
        yield Fact("choices foreseen", f"{found['candidate']['mean']:.3f}", f"most popular {popular:.3f}")
    if steps := [step for step in report.get("steps") or () if step.get("peak_bytes")]:
        most = max(steps, key=lambda step: step["peak_bytes"])
        yield Fact("most memory", bytes_text(most["peak_bytes"]), f"in {most['step']}")


def _evaluation(report: Report) -> Iterator[str]:
    if (evaluation := report.get("evaluation")) is None:
        return
    k = evaluation["k"]
    found = {
        metric: evaluation[part]["metrics"][metric]
        for part, metrics in METRICS.items()
        if evaluation[part] is not None
        for metric in metrics
    }
    titled = [(_METRIC_TITLES[metric].format(k=k), each) for metric, each in found.items() if each["users"]]
    if not titled:
        yield html.section("Quality", "Nothing was held out, so there is nothing to judge by.", "")
        return
    note = "Rows that this run kept out of the candidate's training; means over users with 95 % intervals."
    if evaluation["current"] is None:
        note += " Nothing was published before this run."
    elif evaluation["current_unusable"] is not None:
        note += f" The current release cannot be opened: {evaluation['current_unusable']}."
    yield html.picture(
        "Quality",
        note,
        figures.quality_figure(titled),
        "quality",
        "; ".join(_figures_text(title, each) for title, each in titled),
        _judged(evaluation),
    )
    if changes := [
        (_METRIC_TITLES[metric].format(k=k), each["difference"], _tolerance(report, metric))
        for metric, each in found.items()
        if each["difference"] is not None and each["difference"]["mean"] is not None
    ]:
        yield html.picture(
            "Candidate against the current release",
            "The same users' differences, right of the line the candidate is better. The shaded part is the "
            "tolerance: a loss beyond it whose whole interval is left of the line is refused.",
            figures.difference_figure(changes),
            "difference",
            "; ".join(f"{title} {change['mean']:+.4f}" for title, change, _ in changes),
        )
    yield html.picture(
        "Quality by what is known of a user",
        "Users without any history in the training, and thirds of the others by how much they have.",
        figures.group_figure(titled),
        "groups",
        "; ".join(_groups_text(title, each) for title, each in titled),
    )


def _judged(evaluation: Mapping[str, Any]) -> str:
    """Which rows were judged, and which were not."""
    rows, notes = [], []
    for part in METRICS:
        if (found := evaluation[part]) is None:
            rows.append((f"held-out {part}", "none", ""))
            continue
        rows.append((f"held-out {part}", f"{found['rows']:,}", f"{found['users']:,}"))
        if left_out := ", ".join(f"{n:,} {_LEFT_OUT[name]}" for name, n in found["left_out"].items() if n):
            notes.append(f"<p>Left out of the held-out {part}: {escape(left_out)}.</p>")
    return html.table(("", "rows", "users"), rows) + "".join(notes)


def _tolerance(report: Report, metric: str) -> float | None:
    for reason in (report.get("decision") or {}).get("reasons", ()):
        if reason["rule"] == "comparison" and reason["numbers"].get("metric") == metric:
            tolerance: float = reason["numbers"]["tolerance"]
            return tolerance
    return None


def _figures_text(title: str, found: Mapping[str, Any]) -> str:
    shown = (
        f"{name} {found[name]['mean']:.3f}"
        for name in ("candidate", "current", "user_task", "popularity")
        if found.get(name) is not None and found[name]["mean"] is not None
    )
    return f"{title}: {', '.join(shown)}"


def _groups_text(title: str, found: Mapping[str, Any]) -> str:
    shown = (
        f"{name} {group['candidate']['mean']:.3f}"
        for name, group in found["groups"].items()
        if group["candidate"] is not None and group["candidate"]["mean"] is not None
    )
    return f"{title}: {', '.join(shown)}"


def _step_text(step: Mapping[str, Any]) -> str:
    seconds = step.get("seconds")
    return f"{step['step']} {step['state']}" + ("" if seconds is None else f" in {seconds_text(seconds)}")


def _time(text: str) -> str:
    """A time as a person reads it, to the minute."""
    at = datetime.fromisoformat(text)
    zone = "" if at.tzinfo is None else " UTC" if not at.utcoffset() else f" {at:%z}"
    return f"{at:%Y-%m-%d %H:%M}{zone}"
