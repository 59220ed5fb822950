"""CSV and Parquet tables whose cells are checked column by column. Rows count from 1, without the header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from router.errors import DataError, MissingDataError

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
    if path.suffix in _PICKLES:
        raise DataError(
            f"{path}: pickle files are refused, reading one runs code from it; save it as CSV or Parquet"
        )
    try:
        table = _read(path)
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {error}") from None
    for name in needed:
        if name not in table.column_names:
            raise MissingDataError(f"{path}: no column {name!r} (there are {', '.join(table.column_names)})")
    if table.num_rows == 0:
        raise DataError(f"{path}: empty (no rows)")
    return table


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


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path)
    if not path.name.endswith((".csv", ".csv.gz")):
        raise DataError(f"{path}: the name must end in .csv, .csv.gz or .parquet")
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    names = pa.csv.open_csv(path, parse_options=parse).schema.names
    as_text = pa.csv.ConvertOptions(column_types={name: pa.string() for name in names})
    return pa.csv.read_csv(path, parse_options=parse, convert_options=as_text)
