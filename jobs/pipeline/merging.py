"""From the rows of all deliveries and of the feedback to one table: what takes part, once, in a fixed order.

A row takes part if it is older than the end of the interval and no erasure covers it. Rows that are equal in
every column, time included, are one. Rows without a time may be meant to repeat within a file, so they count
as often as the file says that has them most often: a second delivery of the same adds nothing. A row of the
feedback is left out if a delivery tells the same: the same user, item (or query and LLM) and time.

Nothing here depends on the order of files and rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.pipeline.deliveries import CHOICES, INTERACTIONS
from jobs.pipeline.rows import SCHEMAS, TIME
from router.erasure import Erasure, user_digest

Bools = NDArray[np.bool_]
_SAME = {INTERACTIONS: ("user", "item", "timestamp"), CHOICES: ("user", "query", "llm", "timestamp")}
_SAMPLE_KEY, _ROW_KEY = b"fairpath held-out users", b"fairpath held-out rows"
_FILE = "file"


def taking_part(
    rows: pa.Table, until: datetime | None, erasures: Mapping[str, Erasure]
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows older than ``until`` that no erasure covers, and how many there were of which.

    Returns
    -------
    table
        The rows that take part.
    dict
        ``rows``, ``later``, ``erased``; ``last`` and ``first_later``, the latest time of all rows and the
        earliest one that is too late, as texts, or None.
    """
    times = rows["timestamp"]
    is_later = np.zeros(len(rows), dtype=bool)
    if until is not None:
        limit = pa.scalar(until, TIME)
        is_later = pc.fill_null(pc.greater_equal(times, limit), False).to_numpy()
    is_erased = ~is_later & covered(rows, erasures)
    counts = {
        "rows": len(rows),
        "later": int(is_later.sum()),
        "erased": int(is_erased.sum()),
        "last": _text(pc.max(times)),
        "first_later": _text(pc.min(times.filter(pa.array(is_later)))),
    }
    return rows.filter(pa.array(~(is_later | is_erased))), counts


def covered(rows: pa.Table, erasures: Mapping[str, Erasure]) -> Bools:
    """Rows that an erasure covers, bool [n]: by ``user``, and by ``timestamp`` where there is one."""
    found = np.zeros(len(rows), dtype=bool)
    if not erasures or not len(rows):
        return found
    users = rows["user"].combine_chunks().dictionary_encode()
    of_user = [erasures.get(user_digest(key)) for key in users.dictionary.to_pylist()]
    concerned = np.array([erasure is not None for erasure in of_user], dtype=bool)
    codes = users.indices.to_numpy(zero_copy_only=False)
    candidates = np.flatnonzero(concerned[codes])
    if "timestamp" not in rows.column_names:
        times: list[float | None] = [None] * candidates.size
    else:
        ticks = rows["timestamp"].take(pa.array(candidates)).cast(pa.int64()).to_pylist()
        times = [None if tick is None else tick / 1e6 for tick in ticks]
    for row, at in zip(candidates.tolist(), times, strict=True):
        erasure = of_user[codes[row]]
        found[row] = erasure is not None and erasure.covers(at)
    return found


def merged(
    kind: str, deliveries: Sequence[pa.Table], feedback: pa.Table | None = None
) -> tuple[pa.Table, dict[str, int]]:
    """One table of rows that take part, sorted, each as often as it counts.

    Parameters
    ----------
    kind
        ``interactions`` or ``choices``.
    deliveries
        Rows of each file.
    feedback
        Rows of the feedback, or None.

    Returns
    -------
    table
        Sorted by its columns.
    dict
        ``repeated``, rows of deliveries left out since others are the same, and ``repeated_feedback``.
    """
    schema = SCHEMAS[kind]
    told = schema.empty_table() if feedback is None else feedback.select(schema.names)
    parts, words = _encoded([*deliveries, told], schema)  # texts are long, and slow to compare
    all_rows = (
        pa.concat_tables(
            part.append_column(_FILE, pa.array(np.full(len(part), number), pa.int32()))
            for number, part in enumerate(parts[:-1])
        )
        if deliveries
        else _of_one_file(parts[-1].slice(0, 0))
    )
    n_delivered, told = len(all_rows), parts.pop()
    parts.clear()
    delivered = _once(all_rows, schema.names)
    del all_rows
    counts = {"repeated": n_delivered - len(delivered), "repeated_feedback": len(told)}
    if len(told) and len(delivered):
        same = list(_SAME[kind])
        known = delivered.select(same).group_by(same, use_threads=False).aggregate([])
        told = told.join(known, keys=same, join_type="left anti", use_threads=False).select(schema.names)
    told = _once(_of_one_file(told), schema.names)
    counts["repeated_feedback"] -= len(told)
    table = pa.concat_tables([delivered, told]).combine_chunks()
    del delivered, told
    table = table.sort_by([(name, "ascending") for name in schema.names])
    for name, known in words.items():
        at = schema.get_field_index(name)
        table = table.set_column(at, name, known.take(table[name].combine_chunks()))
    return table.cast(schema), counts


def _encoded(parts: Sequence[pa.Table], schema: pa.Schema) -> tuple[list[pa.Table], dict[str, pa.Array]]:
    """Tables with texts by their rank among all, int32; and the texts of each column, ascending."""
    words = {}
    encoded = list(parts)
    for at, column in enumerate(schema):
        if column.type != pa.large_string():
            continue
        distinct = pa.chunked_array([part[column.name].combine_chunks().unique() for part in parts]).unique()
        distinct = distinct.drop_null()
        words[column.name] = known = distinct.take(pc.sort_indices(distinct))
        encoded = [
            part.set_column(at, column.name, pc.index_in(part[column.name], value_set=known))
            for part in encoded
        ]
    return encoded, words


def _of_one_file(rows: pa.Table) -> pa.Table:
    return rows.append_column(_FILE, pa.array(np.zeros(len(rows)), pa.int32()))


def held_out(rows: pa.Table, share: float, events: int) -> Bools:
    """Which rows are kept from the training: the last of each user in the sample, bool [n].

    Parameters
    ----------
    rows
        In a fixed order.
    share
        Share of the users in the sample. A user is in it or not by a digest of the key, in every run and
        whoever else there is.
    events
        Most rows held out of a user; of one with n rows never more than n ÷ 2. Rows without a time are the
        first; rows of the same time, or of none, are ordered by a digest.
    """
    found = np.zeros(len(rows), dtype=bool)
    if not len(rows) or share <= 0 or events <= 0:
        return found
    users = rows["user"].combine_chunks().dictionary_encode()
    sampled = np.array([_fraction(_SAMPLE_KEY, key) < share for key in users.dictionary.to_pylist()])
    codes = users.indices.to_numpy(zero_copy_only=False)
    mine = np.flatnonzero(sampled[codes])
    if not mine.size:
        return found
    times = pc.fill_null(rows["timestamp"].take(pa.array(mine)).cast(pa.int64()), np.iinfo(np.int64).min)
    ticks = times.to_numpy()
    order = np.lexsort((mine, ticks, codes[mine]))
    ordered = np.stack([codes[mine], ticks])[:, order]
    same = np.zeros(mine.size + 1, dtype=bool)  # of the same user and time as the one before
    same[1:-1] = (ordered[:, 1:] == ordered[:, :-1]).all(axis=0)
    digests = np.zeros(mine.size)
    unsettled = order[same[:-1] | same[1:]]
    digests[unsettled] = _digests(rows.take(pa.array(mine[unsettled])))
    order = np.lexsort((mine, digests, ticks, codes[mine]))
    in_order = codes[mine][order]
    n_rows = np.bincount(in_order, minlength=sampled.size)
    behind = np.cumsum(n_rows)[in_order] - 1 - np.arange(order.size)  # rows of the same user that are later
    found[mine[order]] = behind < np.minimum(events, n_rows // 2)[in_order]
    return found


def _digests(rows: pa.Table) -> NDArray[np.float64]:
    """A number for each row by what it says, whoever else there is, float64 [n]."""
    words = [name for name in ("user", "item", "query", "llm") if name in rows.column_names]
    texts = zip(*(rows[name].to_pylist() for name in words), strict=True)
    return np.array([_fraction(_ROW_KEY, "\0".join(row)) for row in texts])


def count_late(kind: str, folder: Path, before: Path, end: datetime) -> int:
    """Rows of an output of ``collect`` older than ``end`` that an earlier one did not have.

    Rows without a time are never late.
    """
    names = list(_SAME[kind])
    new, old = (_rows_of(kind, place, names) for place in (folder, before))
    if new is None:
        return 0
    new = new.filter(pc.less(new["timestamp"], pa.scalar(end, TIME)))
    if old is None:
        return len(new)
    numbers = pa.array(_numbered(pa.concat_tables([new, old])))
    return len(new) - int(pc.is_in(numbers[: len(new)], value_set=numbers[len(new) :]).true_count)


def _numbered(rows: pa.Table) -> NDArray[np.int64]:
    """A number for each row, int64 [n], 0 or more: the same for equal rows; null equals null."""
    numbers, bound = np.zeros(len(rows), dtype=np.int64), 1
    for column in rows.unify_dictionaries().columns:
        values = column.combine_chunks()
        values = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
        n_values = len(values.dictionary) + 1
        if bound * n_values > np.iinfo(np.int64).max:
            known = pa.array(numbers).dictionary_encode()
            numbers, bound = known.indices.to_numpy().astype(np.int64), len(known.dictionary)
        numbers = numbers * n_values + pc.fill_null(values.indices, n_values - 1).to_numpy()
        bound *= n_values
    return numbers


def _rows_of(kind: str, folder: Path, names: Sequence[str]) -> pa.Table | None:
    """Rows with a time of both tables of a kind, texts by dictionary; None where there are none."""
    paths = [folder / f"{name}.parquet" for name in (kind, f"held_out_{kind}")]
    files = [pq.ParquetFile(path, read_dictionary=names[:-1]) for path in paths if path.exists()]
    tables = [file.read(list(names)) for file in files if "timestamp" in file.schema_arrow.names]
    return pa.concat_tables(tables) if tables else None


def _once(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Rows without their repetitions; the column of the file is taken away."""
    timed = rows["timestamp"].is_valid()
    once = rows.filter(timed).group_by(list(names), use_threads=False).aggregate([])
    rest = rows.filter(pc.invert(timed))
    if not len(rest):
        return once.select(names)
    per_file = rest.group_by([*names, _FILE], use_threads=False).aggregate([([], "count_all")])
    most = per_file.group_by(list(names), use_threads=False).aggregate([("count_all", "max")])
    at = np.repeat(np.arange(len(most)), most["count_all_max"].to_numpy())
    return pa.concat_tables([once.select(names), most.select(names).take(pa.array(at))])


def _fraction(key: bytes, text: str) -> float:
    """Number in [0, 1) by a keyed digest."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8, key=key).digest()
    return float(int.from_bytes(digest, "big") / 2**64)


def _text(time: pa.Scalar) -> str | None:
    at = time.as_py()
    return None if at is None else str(at.isoformat())
