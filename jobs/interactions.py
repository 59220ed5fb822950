"""A person's own interactions, as one table to split into training and test parts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ppr.errors import DataError
from ppr.inputs import EdgeBatch, EdgeInput, open_edges
from ppr.readers import Part, simplified

TIME_NAMES = ("timestamp", "time", "datetime", "date", "ts")
_STRINGS = (pa.types.is_string, pa.types.is_large_string)


def read_interactions(path: Path, columns: Mapping[str, Any] | None = None) -> pa.Table:
    """Read a file or folder of interactions, in any format that ``build-graph`` takes.

    Parameters
    ----------
    path
        File or folder.
    columns
        How to read it where that is not to be detected: ``src``, ``dst``, ``weight``, ``delimiter`` and
        ``header`` of :class:`ppr.inputs.EdgeInput`.

    Returns
    -------
    pyarrow.Table
        ``user`` and ``item`` as strings, ``weight`` as float64 where the file has weights, ``timestamp``
        where it has a column of one of :data:`TIME_NAMES`: numbers or times, whatever can be ordered.

    Raises
    ------
    MissingDataError
        The file or a column is missing.
    DataError
        A row breaks a rule, or there is none.
    """
    source = EdgeInput(path, src_kind="user", dst_kind="item", directed=False, **(columns or {}))
    with tempfile.TemporaryDirectory() as staging:
        edges = open_edges(source, str(path), Path(staging))
        batches = list(edges.batches("string", weights=True))
        columns = {
            "user": pa.chunked_array([b.src for b in batches], pa.large_string()),
            "item": pa.chunked_array([b.dst for b in batches], pa.large_string()),
        }
        if not len(columns["user"]):
            raise DataError(f"{path}: empty (no rows)")
        if edges.weighted:
            columns["weight"] = pa.chunked_array([_weights(batch) for batch in batches])
        times = [_time_column(part) for part in edges.table.parts]
        if None not in times:
            parts = zip(edges.table.parts, times, strict=True)
            columns["timestamp"] = _ordered(
                path,
                [batch[0] for part, column in parts if column is not None for batch in part.read([column])],
            )
    return pa.table(columns)


def _weights(batch: EdgeBatch) -> pa.Array:
    """Weights of a batch; 1 where its part of the table has none."""
    return pa.array(np.ones(len(batch.src)) if batch.weight is None else batch.weight)


def _time_column(part: Part) -> int | None:
    """Position of the column of times, if there is one."""
    names = [simplified(name) for name in part.columns] if part.named else []
    return next((names.index(name) for name in TIME_NAMES if name in names), None)


def _ordered(path: Path, chunks: list[pa.Array]) -> pa.ChunkedArray:
    """Convert times to what can be compared: text to numbers, or else to ISO times."""
    times = pa.chunked_array(chunks)
    if not any(is_string(times.type) for is_string in _STRINGS):
        return times
    trimmed = pc.utf8_trim_whitespace(times)
    for kind in (pa.float64(), pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
        try:
            return trimmed.cast(kind)
        except pa.ArrowInvalid:
            continue
    raise DataError(f"{path}: times must be numbers or ISO 8601 (got {times[0].as_py()!r})")
