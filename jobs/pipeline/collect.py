"""Step ``collect``: all deliveries and the feedback, as tables to train on and tables to judge by.

Below the output,

===============================  =============================================================
``interactions.parquet``         user, item[, weight][, timestamp]; what the graph is built from
``choices.parquet``              events, as ``train-router`` reads them
``held_out_interactions...``     what was kept from both: the last events of a sample of users
``held_out_choices.parquet``
``queries.parquet``              embeddings of the feedback's queries, where it has any
``users.parquet`` or ``.csv``    the users' attributes, where some of them were erased
``collect.json``                 counts by delivery, erasures, what the data are like
===============================  =============================================================

A table without rows is not written. Equal inputs give equal files, byte for byte, whatever the names and the
order of the deliveries and of the rows in them.

The rows are put together in memory: some 300 bytes for each interaction with keys of a dozen letters, so 30
GB for a hundred million of them; more for a choice, whose query is a text. Deliveries of Parquet are read in
pieces, one of CSV whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.pipeline.deliveries import (
    CHOICES,
    INTERACTIONS,
    Delivery,
    check_columns,
    check_sources,
    check_unchanged,
    find_deliveries,
    same_twice,
)
from jobs.pipeline.drift import describe
from jobs.pipeline.feedback import (
    QUERIES,
    Exported,
    Feedback,
    as_input,
    exported,
    newest,
    read_erasures,
    read_feedback,
)
from jobs.pipeline.record import checksums, key_of, output, run_before
from jobs.pipeline.step import Context, Outcome
from jobs.settings import PipelineSettings
from ppr.errors import DataError
from ppr.manifest import new_store
from router.erasure import Erasure
from router.errors import DataError as RouterDataError

HELD_OUT = "held_out_"
SUMMARY = "collect.json"
USERS = "users"
_NOTHING = {"rows": 0, "later": 0, "erased": 0}


@dataclass(frozen=True, slots=True)
class _Inputs:
    deliveries: list[Delivery]
    feedback: Exported | None
    erasures: dict[str, Erasure]
    tables: dict[str, Path]  # beside the deliveries
    checksums: dict[str, list[str] | None]

    def check_unchanged(self) -> None:
        check_unchanged(self.deliveries, {path: self.checksums[name] for name, path in self.tables.items()})


def collect(context: Context) -> Outcome:
    """Do the step.

    Raises
    ------
    MissingDataError, DataError
        A delivery is not there or breaks a rule; names the file and the column or row. Nothing was written.
    ConfigurationError
        There are no deliveries at all, or choices without a table of LLMs.
    FeedbackStoreError
        The store cannot be read.
    ResourceError
        The disk is full or the folder cannot be written.
    NotYetError
        A file has no content yet, or changed while it was read.
    """
    settings = context.settings.pipeline
    check_sources(settings)
    deliveries = find_deliveries(settings)
    until = context.run.until
    export = context.work / "steps" / "collect" / ".feedback"
    with exported(settings, export, until or context.now) as feedback:
        given = {name: getattr(settings, name) for name in ("llms", "queries", "users")}
        tables = {name: path for name, path in given.items() if path is not None}
        sums = {name: checksums(path) for name, path in given.items()}
        inputs = _Inputs(deliveries, feedback, read_erasures(settings), tables, sums)
        key, kept = _find(context, inputs)
        if not kept:
            try:
                check_columns(deliveries, settings, context.settings.graph)
                _write(context, inputs, key)
            except (DataError, RouterDataError):
                inputs.check_unchanged()  # what is being written to breaks all rules
                raise
    for first, second in same_twice(deliveries):
        context.log.warning("twice the same delivery", files=[str(first.path), str(second.path)])
    folder = output(context.work, "collect", key)
    return Outcome("kept" if kept else "done", key, _facts(context, folder, kept))


def read_summary(folder: Path) -> dict[str, Any]:
    """Content of ``collect.json`` of an output."""
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return summary


def table(folder: Path, name: str) -> Path | None:
    """A table of an output; None where it has no rows."""
    path = folder / f"{name}.parquet"
    return path if path.exists() else None


def users_table(folder: Path, settings: PipelineSettings) -> Path | None:
    """Table of the users' attributes to train with: without those who were erased."""
    written = [path for path in folder.glob(f"{USERS}.*") if path.suffix in (".csv", ".parquet")]
    return written[0] if written else settings.users


def _find(context: Context, inputs: _Inputs) -> tuple[str, bool]:
    """Key of the output, and whether it is there.

    Without an end of the interval, an output is no longer the right one when a row that was in the future
    then is not any more.
    """
    settings, run = context.settings.pipeline, context.run
    files: dict[str, Any] = {
        kind: sorted({d.sha256 for d in inputs.deliveries if d.table == kind})
        for kind in (INTERACTIONS, CHOICES)
    }
    files |= inputs.checksums
    files["feedback"] = None if inputs.feedback is None else inputs.feedback.checksums
    files["erasures"] = as_input(inputs.erasures)
    how = {
        "until": None if run.until is None else run.until.isoformat(),
        **{name: getattr(settings, name) for name in ("held_out_users", "held_out_events", "may_lack")},
        **{name: getattr(context.settings.graph, name) for name in ("src", "dst", "weight", "weighted")},
    }
    while True:
        key = key_of("collect", files, how)
        folder = output(context.work, "collect", key)
        if not (folder / SUMMARY).exists():
            return key, False
        later = read_summary(folder)["first_later"]
        if run.until is not None or later is None or datetime.fromisoformat(later) >= context.now:
            return key, True
        how = {**how, "until": f"after {later}"}


def _write(context: Context, inputs: _Inputs, key: str) -> None:
    """Read everything, then write the output in one step."""
    from jobs.pipeline.merging import held_out, merged, taking_part
    from jobs.pipeline.rows import read_choices, read_interactions

    settings, log = context.settings.pipeline, context.log
    until = context.run.until or context.now
    llms = _llm_names(settings)
    rows: dict[str, list[pa.Table]] = {INTERACTIONS: [], CHOICES: []}
    described, retired = [], dict[str, int]()
    first = {d.sha256: d for d in reversed(inputs.deliveries)}
    for delivery in inputs.deliveries:
        about: dict[str, Any] = {"name": str(delivery.path), "kind": delivery.table}
        if first[delivery.sha256] is not delivery:
            described.append({**about, **_NOTHING, "same_as": str(first[delivery.sha256].path)})
            continue
        if delivery.is_empty:
            log.warning("an empty delivery", file=str(delivery.path))
            described.append({**about, **_NOTHING})
            continue
        if delivery.breaks_off:
            log.warning("the last line has no end: is the delivery whole?", file=str(delivery.path))
        if delivery.table == INTERACTIONS:
            read = read_interactions(delivery, context.settings.graph)
        else:
            read, unknown = read_choices(delivery, llms)
            for name, n in unknown.items():
                retired[name] = retired.get(name, 0) + n
        taken, counts = taking_part(read, until, inputs.erasures)
        rows[delivery.table].append(taken)
        described.append({**about, **counts})
    if retired:
        log.warning("choices of LLMs that the table does not hold are left out", llms=retired)
    told = _feedback(context, inputs, rows, llms)
    tables: dict[str, pa.Table] = {}
    totals: dict[str, dict[str, int]] = {}
    feedback_times: list[str] = []
    for kind in tuple(rows):
        parts = rows.pop(kind)
        from_store = None
        if told is not None:
            of_store = told.interactions if kind == INTERACTIONS else told.choices
            from_store, counts = taking_part(of_store, until, inputs.erasures)
            described.append({"name": "feedback", "kind": kind, **counts})
            if len(from_store):  # a microsecond later: the store has finer times
                last = pc.max(from_store["timestamp"]).as_py() + timedelta(microseconds=1)
                feedback_times.append(last.isoformat())
        together, repeated = merged(kind, parts, from_store)
        kept_out = pa.array(held_out(together, settings.held_out_users, settings.held_out_events))
        tables[kind] = together.filter(pc.invert(kept_out))
        tables[HELD_OUT + kind] = together.filter(kept_out)
        totals[kind] = {"training": len(tables[kind]), "held_out": len(tables[HELD_OUT + kind]), **repeated}
    if not len(tables[INTERACTIONS]) and not len(tables[CHOICES]):
        raise DataError(f"no row takes part in the run {context.run.name}: all are empty, later or erased")
    later = [one["first_later"] for one in described if one.get("first_later") is not None]
    summary: dict[str, Any] = {
        "until": None if context.run.until is None else context.run.until.isoformat(),
        "deliveries": described,
        "tables": totals,
        "retired_llms": retired,
        "feedback_left_out": {} if told is None else told.left_out,
        "feedback_until": max(feedback_times, default=None),
        "erasures": as_input(inputs.erasures),
        "erased_until": newest(inputs.erasures),
        "first_later": min(later, default=None),
        "newest": _newest(tables.values()),
    }
    with new_store(output(context.work, "collect", key)) as folder:
        for name, content in tables.items():
            _write_table(folder / f"{name}.parquet", content)
        if told is not None and told.queries is not None:
            used = pc.is_in(told.queries["id"], value_set=_queries(tables))
            pq.write_table(told.queries.filter(used), folder / f"{QUERIES}.parquet", compression="zstd")
        _write_users(folder, settings.users, inputs.erasures)
        interactions, choices = (
            [p for p in (folder / f"{kind}.parquet", folder / f"{HELD_OUT}{kind}.parquet") if p.exists()]
            for kind in (INTERACTIONS, CHOICES)
        )
        summary["description"] = describe(interactions, choices)
        text = json.dumps(summary, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / SUMMARY).write_text(f"{text}\n", encoding="utf-8")
        inputs.check_unchanged()


def _newest(tables: Iterable[pa.Table]) -> str | None:
    """Time of the newest row; None where no row has one."""
    times = [pc.max(content["timestamp"]).as_py() for content in tables]
    return max((time.isoformat() for time in times if time is not None), default=None)


def _feedback(
    context: Context, inputs: _Inputs, rows: Mapping[str, Sequence[pa.Table]], llms: Sequence[str]
) -> Feedback | None:
    if inputs.feedback is None:
        return None
    delivered = [part for part in rows[CHOICES] if len(part)]
    tasks = None if not delivered else any(part["task"].null_count < len(part) for part in delivered)
    return read_feedback(
        inputs.feedback,
        llms,
        queries=context.settings.pipeline.queries,
        tasks=tasks,
        tell=context.log.warning,
    )


def _llm_names(settings: PipelineSettings) -> tuple[str, ...]:
    if settings.llms is None:
        return ()
    from router.dataset.llms import read_llms

    return tuple(read_llms(settings.llms)[0].names)


def _queries(tables: Mapping[str, pa.Table]) -> pa.Array:
    used = [tables[name]["query"].cast(pa.string()).unique() for name in (CHOICES, HELD_OUT + CHOICES)]
    return pa.concat_arrays(used)


def _write_table(path: Path, content: pa.Table) -> None:
    """Write a table in the form that its readers know; columns that hold nothing are left out."""
    from jobs.pipeline.rows import BETWEEN_NAMES

    if not len(content):
        return
    if "weight" in content.column_names and content["weight"].null_count < len(content):
        at = content.schema.get_field_index("weight")
        content = content.set_column(at, "weight", pc.fill_null(content["weight"], 1.0))
    if "offered" in content.column_names:
        at = content.schema.get_field_index("offered")
        content = content.set_column(at, "offered", pc.split_pattern(content["offered"], BETWEEN_NAMES))
    empty = [name for name in content.column_names if content[name].null_count == len(content)]
    pq.write_table(content.drop_columns(empty), path, compression="zstd")


def _write_users(folder: Path, path: Path | None, erasures: Mapping[str, Erasure]) -> None:
    """The table of the users' attributes without those who were erased, if there are any in it."""
    if path is None or not erasures:
        return
    from jobs.pipeline.merging import covered
    from router.dataset.columns import Columns

    columns = Columns.open(path, {"user": ("user", "user_id")}, ("user",))
    batch = columns.with_extra(columns.extra).whole()
    keys = pa.table({"user": batch.keys("user").cast(pa.large_string())})
    gone = covered(keys, erasures)
    if not gone.any():
        return
    rest = batch.table.filter(pa.array(~gone))
    if batch.is_text:
        pyarrow.csv.write_csv(rest, folder / f"{USERS}.csv")
    else:
        pq.write_table(rest, folder / f"{USERS}.parquet", compression="zstd")


def _facts(context: Context, folder: Path, kept: bool) -> dict[str, Any]:
    """What the run's record keeps of the summary, with what depends on the clock and on other runs."""
    summary = read_summary(folder)
    for one in summary["deliveries"]:
        if one.get("last") and datetime.fromisoformat(one["last"]) > context.now:
            context.log.warning(
                "times are in the future of this machine's clock", file=one["name"], last=one["last"]
            )
    facts = {**summary, "erasures": len(summary["erasures"])}
    facts["as_of"] = (context.run.until or context.now).isoformat()
    old = context.run.facts("collect")
    if kept and context.run.key("collect") == folder.name and "as_of" in old:
        facts["as_of"] = old["as_of"]
    facts["before"] = before = _before(context, folder.name)
    known = {"run": before and before["run"], "key": before and before["key"], "of": folder.name}
    facts["late"] = old.get("late", {})
    if before is not None and {name: facts["late"].get(name) for name in known} != known:
        facts["late"] = {**known, **_late(context, folder, before)}
    return facts


def _before(context: Context, key: str) -> dict[str, Any] | None:
    """What is known of the data of the run before this one; None without one.

    Of a run without an end of its own, that is what the same run had before its data changed.
    """
    run = context.run
    if run.until is None and run.key("collect") is not None:
        old = run.facts("collect")
        if run.key("collect") == key:
            before: dict[str, Any] | None = old.get("before")
            return before
        there = {"run": run.name, "until": old["as_of"], "key": run.key("collect")}
        return {**there, "description": old["description"]}
    record = run_before(context.work, run)
    if record is None:
        return None
    made = record["steps"]["collect"]
    return {
        "run": record["run"],
        "until": record["until"],
        "key": made["key"],
        "description": made["facts"]["description"],
    }


def _late(context: Context, folder: Path, before: Mapping[str, Any]) -> dict[str, int]:
    """Rows older than the end of the run before that it did not have, by kind; nothing if it is gone."""
    old = output(context.work, "collect", before["key"])
    if not old.exists():
        return {}
    from jobs.pipeline.merging import count_late

    end = datetime.fromisoformat(before["until"])
    late = {kind: count_late(kind, folder, old, end) for kind in (INTERACTIONS, CHOICES)}
    if any(late.values()):
        context.log.info("rows that came late", run_before=before["run"], **late)
    return late
