"""CSV and Parquet tables whose cells are checked column by column. Rows count from 1, without the header."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from router.errors import DataError, MissingDataError

_BLOCKS_AHEAD = 16  # Arrow reads about as many before they are asked for
_LEAST_BLOCK = 1 << 12  # a row must fit
_PARSE = pa.csv.ParseOptions(newlines_in_values=True)
_PICKLES = (".pkl", ".pickle")
_NO_BRACKETS = str.maketrans("[](),", "     ")


def open_table(path: Path, needed: Sequence[str]) -> pa.Table:
    """Read a table; cells of a CSV file stay text until their column is asked for.

    Raises
    ------
    MissingDataError
        The file or a column is not there.
    DataError
        It is empty, malformed, or neither CSV nor Parquet.
    """
    with _readable(path):
        table = _read(path)
    for name in needed:
        if name not in table.column_names:
            raise MissingDataError(f"{path}: no column {name!r} (there are {', '.join(table.column_names)})")
    if table.num_rows == 0:
        raise DataError(f"{path}: empty (no rows)")
    return table


def csv_columns(path: Path) -> list[str]:
    """Names of the columns of a CSV file.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is empty, malformed, or not CSV.
    """
    with _readable(path):
        return list(pa.csv.open_csv(path, parse_options=_PARSE).schema.names)


def csv_pieces(path: Path, columns: Sequence[str], n_bytes: int) -> Iterator[pa.Table]:
    """Some columns of a CSV file, all cells text, in pieces of about ``n_bytes`` of the file.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It has no rows, is malformed, or not CSV.
    """
    n_rows, waiting = 0, []
    with _readable(path):
        for batch in _open_csv(path, max(n_bytes // _BLOCKS_AHEAD, _LEAST_BLOCK), columns):
            n_rows += batch.num_rows
            waiting.append(batch)
            if sum(one.nbytes for one in waiting) >= n_bytes:
                yield pa.Table.from_batches(waiting)
                waiting = []
    if n_rows == 0:
        raise DataError(f"{path}: empty (no rows)")
    if waiting:
        yield pa.Table.from_batches(waiting)


def strings(table: pa.Table, name: str, path: Path, *, empty: bool = False) -> NDArray[np.str_]:
    """Column as text, str [n]; without ``empty``, DataError for an empty cell."""
    values = table[name].cast(pa.string()).to_pylist()
    if not empty:
        for row, value in enumerate(values, start=1):
            if not value:
                raise DataError(f"{path}: row {row}: {name!r} must not be empty")
    return np.array([value or "" for value in values], dtype=np.str_)


def numbers(table: pa.Table, name: str, path: Path) -> NDArray[np.float64]:
    """Column as float64 [n]; DataError for a cell that is no finite number."""
    values = np.empty(table.num_rows)
    for row, cell in enumerate(table[name].to_pylist()):
        try:
            values[row] = float(cell)
        except (TypeError, ValueError):
            values[row] = np.nan
        if not np.isfinite(values[row]):
            raise DataError(f"{path}: row {row + 1}: {name!r} must be a finite number (got {cell!r})")
    return values


def vectors(table: pa.Table, name: str, path: Path) -> NDArray[np.float32]:
    """Column of vectors, float32 [n, d]: lists, or text as JSON or numpy print them."""
    rows: list[NDArray[np.float32]] = []
    for number, cell in enumerate(table[name].to_pylist(), start=1):
        values = cell.translate(_NO_BRACKETS).split() if isinstance(cell, str) else cell
        try:
            vector = np.array(values, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.array([np.nan], dtype=np.float32)
        if vector.ndim != 1 or vector.size == 0 or not np.isfinite(vector).all():
            raise DataError(
                f"{path}: row {number}: {name!r} must be a list of finite numbers (got {str(cell)[:60]!r})"
            )
        if vector.size != (rows[0].size if rows else vector.size):
            raise DataError(
                f"{path}: row {number}: {name!r} must have {rows[0].size} numbers (got {vector.size})"
            )
        rows.append(vector)
    return np.stack(rows)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what Arrow raises into errors of this package."""
    if path.suffix in _PICKLES:
        raise DataError(
            f"{path}: pickle files are refused, reading one runs code from it; save it as CSV or Parquet"
        )
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise DataError(f"{path}: the name must end in .csv, .csv.gz or .parquet")
    try:
        yield
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {error}") from None


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path)
    return _open_csv(path, 1 << 26, None).read_all()


def _open_csv(path: Path, n_bytes: int, columns: Sequence[str] | None) -> Any:
    """Reader of a CSV file, all cells text; of all columns where they are None."""
    if columns is None:
        columns = csv_columns(path)
    as_text = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)
    )
    read = pa.csv.ReadOptions(block_size=n_bytes)
    return pa.csv.open_csv(path, read_options=read, parse_options=_PARSE, convert_options=as_text)
