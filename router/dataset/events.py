"""Events: who was served what by which LLM, and how it went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ppr.keys import DistinctKeys
from router.dataset.columns import Batch, Columns, is_list_of_names, size_bytes
from router.errors import DataError
from router.persona.data import Bools, Ints

STREAM_BYTES = 2 << 30
_NEEDED = ("user", "query", "llm")
_MEASURED = ("reward", "cost_usd", "latency_ms")
SMALLEST = {"cost_usd": 0.0, "latency_ms": 0.0}
USUAL_NAMES = {
    "user": ("user", "user_id"),
    "query": ("query", "query_id", "query_text", "prompt"),
    "llm": ("llm", "model", "llm_name"),
    "task": ("task", "task_id"),
    "offered": ("offered", "candidates"),
    "thumbs": ("thumbs",),
    "reward": ("reward", "rating"),
    "cost_usd": ("cost_usd",),
    "latency_ms": ("latency_ms",),
    "timestamp": ("timestamp", "time", "datetime", "ts"),
}


@dataclass(frozen=True, slots=True)
class Events:
    """Events, in the order of the file.

    Attributes
    ----------
    user_keys
        Distinct keys, ascending: Arrow int64 or large_string.
    users
        Position in ``user_keys``, int64 [n].
    query_keys, query_tasks
        Distinct pairs of query and task, ascending: texts or ids as the file has them, object [q], and tasks,
        object [q]; tasks are None where the file has none.
    queries
        Position among those, int64 [n].
    llms
        Position of the LLM that answered, int64 [n].
    offered
        LLMs that could be chosen from, bool [n, m]; None where the file does not say: all could.
    thumbs
        -1, 0 or 1, int8 [n]; zeros where the file has none.
    measured
        ``reward``, ``cost_usd`` and ``latency_ms``, float64 [n], as far as the file has them; NaN: missing.
    timestamps
        Seconds since 1970, float64 [n], or None.
    """

    user_keys: pa.Array
    users: Ints
    query_keys: NDArray[Any]
    query_tasks: NDArray[Any] | None
    queries: Ints
    llms: Ints
    offered: Bools | None
    thumbs: NDArray[np.int8]
    measured: dict[str, NDArray[np.float64]]
    timestamps: NDArray[np.float64] | None
    extra_columns: tuple[str, ...]

    def __len__(self) -> int:
        return self.users.size

    def sorted(self) -> Events:
        """Same events by user, query, LLM, then the rest: whatever the order of the file."""
        columns: list[NDArray[Any]] = [
            self.users,
            self.queries,
            self.llms,
            self.thumbs,
            *self.measured.values(),
        ]
        columns += [] if self.timestamps is None else [self.timestamps]
        columns += [] if self.offered is None else list(self.offered.T)
        order = np.lexsort(columns[::-1])
        return replace(
            self,
            users=self.users[order],
            queries=self.queries[order],
            llms=self.llms[order],
            offered=None if self.offered is None else self.offered[order],
            thumbs=self.thumbs[order],
            measured={name: values[order] for name, values in self.measured.items()},
            timestamps=None if self.timestamps is None else self.timestamps[order],
        )


def read_events(path: str | Path, llm_names: Sequence[str], *, stream_bytes: int = STREAM_BYTES) -> Events:
    """Read events from Parquet or CSV.

    Parameters
    ----------
    path
        Columns ``user``, ``query`` (a text, or an id) and ``llm`` are needed; ``task``, ``offered`` (a list
        of names; in CSV, names with | between them), ``thumbs``, ``reward``, ``cost_usd``, ``latency_ms``
        and ``timestamp`` are read where there are any.
    llm_names
        LLMs that there are.
    stream_bytes
        Size from which Dask spreads the work over threads; the result is the same.

    Raises
    ------
    MissingDataError
        The file or a needed column is not there.
    DataError
        A cell breaks its rule; an LLM is unknown, or was chosen though not on offer. Names file and row.
    """
    file = Path(path)
    columns = Columns.open(file, USUAL_NAMES, _NEEDED)
    positions = {name: i for i, name in enumerate(llm_names)}
    parts = columns.map(partial(_Part.of, positions=positions), parallel=size_bytes(file) > stream_bytes)
    user_keys, users = _merged([part.users for part in parts])
    texts, of_text = _merged([part.queries for part in parts])
    tasks, of_task = (None, None) if parts[0].tasks is None else _merged([_there(p.tasks) for p in parts])
    pairs = of_text if of_task is None else of_task * np.int64(len(texts)) + of_text
    distinct, queries = np.unique(pairs, return_inverse=True)
    return Events(
        user_keys=user_keys,
        users=users,
        query_keys=texts.to_numpy(zero_copy_only=False)[distinct % len(texts)],
        query_tasks=None if tasks is None else tasks.to_numpy(zero_copy_only=False)[distinct // len(texts)],
        queries=queries.astype(np.int64),
        llms=np.concatenate([part.llms for part in parts]),
        offered=None if parts[0].offered is None else np.concatenate([_there(p.offered) for p in parts]),
        thumbs=np.concatenate([part.thumbs for part in parts]),
        measured={
            name: np.concatenate([part.measured[name] for part in parts]) for name in parts[0].measured
        },
        timestamps=None
        if parts[0].timestamps is None
        else np.concatenate([_there(part.timestamps) for part in parts]),
        extra_columns=columns.extra,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """Events of one piece: as in :class:`Events`, but keys as Arrow dictionaries of this piece's own."""

    users: pa.DictionaryArray
    queries: pa.DictionaryArray
    tasks: pa.DictionaryArray | None
    llms: Ints
    offered: Bools | None
    thumbs: NDArray[np.int8]
    measured: dict[str, NDArray[np.float64]]
    timestamps: NDArray[np.float64] | None

    @classmethod
    def of(cls, batch: Batch, positions: dict[str, int]) -> _Part:
        llms = _llms(batch, positions)
        return cls(
            users=batch.keys("user").dictionary_encode(),
            queries=batch.texts("query").dictionary_encode(),
            tasks=batch.texts("task").dictionary_encode() if batch.has("task") else None,
            llms=llms,
            offered=_offered(batch, positions, llms) if batch.has("offered") else None,
            thumbs=_thumbs(batch),
            measured={
                name: batch.numbers(name, at_least=SMALLEST.get(name, -np.inf))
                for name in _MEASURED
                if batch.has(name)
            },
            timestamps=batch.seconds("timestamp") if batch.has("timestamp") else None,
        )


def llm_positions(batch: Batch, names: pa.Array, positions: dict[str, int]) -> Ints:
    """Positions of LLMs by their names, int64 [n].

    Raises
    ------
    DataError
        A name is unknown; tells file and row.
    """
    encoded = names.dictionary_encode()
    known = np.array([positions.get(name, -1) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    found: Ints = known[encoded.indices.to_numpy(zero_copy_only=False)]
    unknown = np.flatnonzero(found < 0)
    if unknown.size:
        row = int(unknown[0])
        raise batch.error(
            row, f"unknown LLM {names[row].as_py()!r}; there are {', '.join(list(positions)[:20])}"
        )
    return found


def _llms(batch: Batch, positions: dict[str, int]) -> Ints:
    return llm_positions(batch, batch.texts("llm"), positions)


def _offered(batch: Batch, positions: dict[str, int], llms: Ints) -> Bools:
    column = batch.table["offered"].combine_chunks()
    if batch.is_text:
        texts = pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column.cast(pa.string()))
        column = pc.split_pattern(texts, "|")
    if not is_list_of_names(column.type):
        raise DataError(f"{batch.path}: column 'offered' must hold lists of names (got {column.type})")
    rows, names = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)
    absent = np.flatnonzero(names.is_null().to_numpy(zero_copy_only=False))
    if absent.size:
        raise batch.error(int(rows[absent[0]]), "'offered' must hold names only (got a null)")
    encoded = names.cast(pa.large_string()).dictionary_encode()
    known = np.array([positions.get(name, -1) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    found = known[encoded.indices.to_numpy(zero_copy_only=False)]
    unknown = np.flatnonzero(found < 0)
    if unknown.size:
        at = int(unknown[0])
        raise batch.error(int(rows[at]), f"'offered' holds an unknown LLM {names[at].as_py()!r}")
    offered = np.ones((len(batch), len(positions)), dtype=bool)
    offered[rows] = False
    offered[rows, found] = True
    absent = np.flatnonzero(~offered[np.arange(len(batch)), llms])
    if absent.size:
        raise batch.error(int(absent[0]), "'offered' must hold the LLM that was chosen")
    return offered


def _thumbs(batch: Batch) -> NDArray[np.int8]:
    if not batch.has("thumbs"):
        return np.zeros(len(batch), dtype=np.int8)
    values = np.nan_to_num(batch.numbers("thumbs"))
    wrong = np.flatnonzero(~np.isin(values, (-1.0, 0.0, 1.0)))
    if wrong.size:
        raise batch.error(int(wrong[0]), f"'thumbs' must be -1, 0 or 1 (got {values[wrong[0]]:g})")
    return values.astype(np.int8)


def _merged(parts: list[pa.DictionaryArray]) -> tuple[pa.Array, Ints]:
    """Distinct values, ascending, and each entry's position among them."""
    distinct = DistinctKeys()
    for part in parts:
        distinct.add(part.dictionary)
    values = distinct.sorted(as_strings=distinct.has_strings)
    codes = []
    for part in parts:
        own = pc.index_in(part.dictionary.cast(values.type), value_set=values).to_numpy()
        codes.append(own[part.indices.to_numpy()].astype(np.int64))
    return values, np.concatenate(codes)


def _there(value: Any) -> Any:
    assert value is not None
    return value
