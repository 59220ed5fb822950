"""Rows of deliveries, checked cell by cell: a file to an Arrow table with the same columns for all.

======================  =============================================================================
``user``, ``item``      large_string: keys are texts throughout, whatever type a file has them in
``weight``              float64
``query``, ``task``     large_string
``llm``                 large_string
``offered``             large_string: names with a unit separator between, ascending; null: not known
``thumbs``              int8
``reward`` ...          float64
``timestamp``           timestamp[us, UTC]
======================  =============================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.pipeline.deliveries import CHOICES, INTERACTIONS, NEEDED, Delivery, usual_names
from jobs.settings import GraphSettings
from ppr.errors import DataError
from router.dataset.columns import Batch, Columns, is_list_of_names
from router.dataset.events import USUAL_NAMES, Events, read_events

TIME = pa.timestamp("us", "UTC")
SCHEMAS = {
    INTERACTIONS: pa.schema(
        {"user": pa.large_string(), "item": pa.large_string(), "weight": pa.float64(), "timestamp": TIME}
    ),
    CHOICES: pa.schema(
        {
            "user": pa.large_string(),
            "query": pa.large_string(),
            "llm": pa.large_string(),
            "task": pa.large_string(),
            "offered": pa.large_string(),
            "thumbs": pa.int8(),
            "reward": pa.float64(),
            "cost_usd": pa.float64(),
            "latency_ms": pa.float64(),
            "timestamp": TIME,
        }
    ),
}
BETWEEN_NAMES = "\x1f"
YEARS_1_TO_9999 = (-62_135_596_800.0, 253_402_300_800.0)
"""What a time in seconds since 1970 is at least, and below."""


def read_interactions(delivery: Delivery, graph: GraphSettings) -> pa.Table:
    """Rows of a file of interactions.

    Raises
    ------
    MissingDataError, DataError
        The file or a cell breaks a rule; names file and row.
    """
    columns = Columns.open(delivery.path, usual_names(INTERACTIONS, graph), NEEDED[INTERACTIONS])
    return pa.concat_tables([_interactions(batch) for batch in columns.batches()])


def read_choices(
    delivery: Delivery, llms: Sequence[str], *, all_may_be_retired: bool = False
) -> tuple[pa.Table, dict[str, int]]:
    """Rows of a file of choices, without those of LLMs that the catalogue has no more.

    Returns
    -------
    table
        The rows.
    dict
        How many were left out, by their LLM.

    Raises
    ------
    MissingDataError, DataError
        The file or a cell breaks a rule; names file and row. No row is of an LLM of the catalogue.
    """
    retired = sorted(_names_in(delivery.path) - set(llms))
    events = read_events(delivery.path, [*llms, *retired])
    known = events.llms < len(llms)
    if not known.any() and not all_may_be_retired:
        raise DataError(
            f"{delivery.path}: no choice is of an LLM that there is ({', '.join(llms[:20])}; "
            f"got {retired[0]!r})"
        )
    counts = np.bincount(events.llms[~known] - len(llms), minlength=len(retired))
    left_out = {name: int(n) for name, n in zip(retired, counts, strict=True) if n}
    times = np.full(len(events), np.nan) if events.timestamps is None else events.timestamps
    if wrong := _wrong_time(times):
        raise DataError(f"{delivery.path}: row {wrong[0] + 1}: {wrong[1]}")
    return _choices(events, times, np.array([*llms, *retired], dtype=object), len(llms)).filter(
        pa.array(known)
    ), left_out


def microseconds(seconds: NDArray[np.float64]) -> pa.Array:
    """Times in seconds since 1970, NaN for none, as the tables have them."""
    known = ~np.isnan(seconds)
    ticks = np.rint(np.where(known, seconds, 0.0) * 1e6).astype(np.int64)
    return pa.array(ticks, pa.int64(), mask=~known).cast(TIME)


def _interactions(batch: Batch) -> pa.Table:
    columns = {name: batch.keys(name).cast(pa.large_string()) for name in ("user", "item")}
    weights: pa.Array = pa.nulls(len(batch), pa.float64())
    if batch.has("weight"):
        values = batch.numbers("weight")
        wrong = np.flatnonzero(~(values > 0))
        if wrong.size:
            raise batch.error(
                int(wrong[0]), f"'weight' must be positive and finite (got {float(values[wrong[0]])!r})"
            )
        weights = pa.array(values)
    seconds = batch.seconds("timestamp") if batch.has("timestamp") else np.full(len(batch), np.nan)
    if found := _wrong_time(seconds):
        raise batch.error(*found)
    return pa.table(
        {**columns, "weight": weights, "timestamp": microseconds(seconds)}, schema=SCHEMAS[INTERACTIONS]
    )


def _wrong_time(seconds: NDArray[np.float64]) -> tuple[int, str] | None:
    """First row with a time that cannot be one, and the rule."""
    first, last = YEARS_1_TO_9999
    wrong = np.flatnonzero((seconds < first) | (seconds >= last))
    if not wrong.size:
        return None
    row = int(wrong[0])
    return row, (
        "'timestamp' must be a time in the years 1 to 9999; numbers are seconds since 1970 "
        f"(got {float(seconds[row])!r})"
    )


def _names_in(path: Path) -> set[str]:
    """Names of LLMs that a file of choices has."""
    columns = Columns.open(path, {name: USUAL_NAMES[name] for name in ("llm", "offered")}, ("llm",))
    names: set[str] = set()
    for batch in columns.batches():
        names.update(batch.texts("llm").unique().to_pylist())
        if batch.has("offered"):
            column = batch.table["offered"].combine_chunks()
            if batch.is_text:
                column = pc.split_pattern(column.cast(pa.string()), "|")
            if is_list_of_names(column.type):  # else the reading of the rows says what is wrong
                names.update(name for name in pc.list_flatten(column).unique().to_pylist() if name)
    return names


def _choices(events: Events, times: NDArray[np.float64], names: NDArray[np.object_], n_llms: int) -> pa.Table:
    n = len(events)
    offered: pa.Array = pa.nulls(n, pa.large_string())
    if events.offered is not None:
        ascending = np.argsort(names[:n_llms].astype(str), kind="stable")
        rows, codes = np.unique(events.offered[:, ascending], axis=0, return_inverse=True)
        texts = [BETWEEN_NAMES.join(names[ascending[row]]) for row in rows]
        offered = pa.array(texts, pa.large_string()).take(pa.array(codes.ravel()))
    tasks: pa.Array = pa.nulls(n, pa.large_string())
    if events.query_tasks is not None:
        tasks = pa.array(events.query_tasks, pa.large_string()).take(pa.array(events.queries))
    measured = {
        name: pa.array(events.measured[name], from_pandas=True)
        if name in events.measured
        else pa.nulls(n, pa.float64())
        for name in ("reward", "cost_usd", "latency_ms")
    }
    columns = {
        "user": events.user_keys.cast(pa.large_string()).take(pa.array(events.users)),
        "query": pa.array(events.query_keys, pa.large_string()).take(pa.array(events.queries)),
        "llm": pa.array(names, pa.large_string()).take(pa.array(events.llms)),
        "task": tasks,
        "offered": offered,
        "thumbs": pa.array(events.thumbs, pa.int8()),
        **measured,
        "timestamp": microseconds(times),
    }
    return pa.table(columns, schema=SCHEMAS[CHOICES])
