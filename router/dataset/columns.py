"""Tables of a training: columns found by their usual names, checked row by row, read piece by piece.

A table is read in pieces: a few row groups of a Parquet file (or of a folder of them), some of the lines of a
CSV file. What is made of a piece is small, so tables larger than memory can be read; Dask spreads the pieces
of Parquet files over threads where it is installed, a CSV file is read from its beginning to its end. Rows
count from 1, without the header.

Files of a folder may have different columns, and types of the same meaning: what a file does not have is null
in its rows, and text is text, however Arrow keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ppr.readers import simplified
from router.errors import DataError, MissingDataError
from router.loaders.tables import csv_columns, csv_pieces

PIECE_BYTES = 1 << 26
_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_PARQUET = (".parquet", ".pq")
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_KEY = pa.scalar(np.iinfo(np.int64).max, pa.uint64())
_TIMES = (*(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")), pa.float64())
_TIME_RULE = "must be an ISO 8601 time, with a zone in all rows or in none, or a number of seconds"
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some consecutive rows of a table.

    Attributes
    ----------
    path
        File, for messages.
    first_row
        Number of the first row.
    table
        The columns, by what they stand for.
    is_text
        Whether all cells are text, as in a CSV file.
    """

    path: Path
    first_row: int
    table: pa.Table
    is_text: bool

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def has(self, name: str) -> bool:
        """Whether there is such a column."""
        return name in self.table.column_names

    def error(self, row: int, rule: str) -> DataError:
        """Error that names file and row; ``row`` is a position in this batch."""
        return DataError(f"{self.path}: row {self.first_row + row}: {rule}")

    def keys(self, name: str) -> pa.Array:
        """Keys of users or items, int64 or large_string; in text, integers where all cells are.

        Raises
        ------
        DataError
            A key is null or empty, or the column holds neither integers nor strings.
        """
        column = self.table[name].combine_chunks()
        if pa.types.is_integer(column.type):
            self._refuse(column.is_null(), name, "must not be null", column)
            if pa.types.is_uint64(column.type):
                self._refuse(pc.greater(column, _LARGEST_KEY), name, "must be below 2**63", column)
            return column.cast(pa.int64())
        texts = self.texts(name)
        if self.is_text and pc.all(pc.match_substring_regex(texts, _INTEGER)).as_py():
            return texts.cast(pa.int64())
        return texts

    def texts(self, name: str) -> pa.Array:
        """Texts, large_string.

        Raises
        ------
        DataError
            A cell is null or empty, or the column holds neither integers nor strings.
        """
        column = self.table[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not (_is_string(column.type) or pa.types.is_integer(column.type)):
            raise DataError(f"{self.path}: column {name!r} must hold texts or integers (got {column.type})")
        texts = column.cast(pa.large_string())
        absent = pc.or_kleene(texts.is_null(), pc.equal(pc.binary_length(texts), 0))
        self._refuse(pc.fill_null(absent, True), name, "must not be null or empty", column)
        return texts

    def numbers(self, name: str, *, nan: bool = False, at_least: float = -np.inf) -> NDArray[np.float64]:
        """Numbers that float32 can hold, as float64; NaN where a cell is null or, in text, empty.

        Parameters
        ----------
        name
            Column.
        nan
            Whether the column itself may say NaN, for "not measured".
        at_least
            Smallest number that is allowed.

        Raises
        ------
        DataError
            A cell is no number, infinite, too small or too large, or NaN without leave.
        """
        column = self.table[name].combine_chunks()
        parsed = self._parsed(column, name) if _is_string(column.type) else column
        try:
            values = parsed.cast(pa.float64(), safe=False)
        except pa.ArrowException:
            raise DataError(f"{self.path}: column {name!r} must hold numbers (got {column.type})") from None
        result: NDArray[np.float64] = pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False)
        wrong = np.isinf(result) if nan else ~np.isfinite(result) & values.is_valid().to_numpy(False)
        self._refuse(pa.array(wrong), name, "must be a finite number", column)
        self._refuse(pa.array(np.abs(result) > _LARGEST), name, "must be within what float32 holds", column)
        self._refuse(pa.array(result < at_least), name, f"must be at least {at_least:g}", column)
        return result

    def seconds(self, name: str) -> NDArray[np.float64]:
        """Times in seconds since 1970, float64; NaN where a cell is null or, in text, empty.

        Times without a zone are taken for UTC.

        Raises
        ------
        DataError
            A cell is neither a time nor a number.
        """
        column = self.table[name].combine_chunks()
        if _is_string(column.type):
            column = self._parsed(column, name, _TIMES, _TIME_RULE)
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        if not pa.types.is_timestamp(column.type):
            return self.numbers(name)
        ticks = column.cast(pa.int64()).cast(pa.float64(), safe=False)
        seconds: NDArray[np.float64] = pc.fill_null(ticks, np.nan).to_numpy(zero_copy_only=False)
        return seconds / _PER_SECOND[column.type.unit]

    def _parsed(
        self,
        column: pa.Array,
        name: str,
        kinds: Sequence[pa.DataType] = (pa.float64(),),
        rule: str = "must be a finite number",
    ) -> pa.Array:
        """Texts as the first of the types that fits all; null where they are empty."""
        trimmed = pc.ascii_trim_whitespace(column.cast(pa.string()))
        filled = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
        fitting = [_n_castable(filled, kind) for kind in kinds]
        row = max(fitting)
        if row < len(column):
            raise self._cell_error(row, name, rule, column)
        return filled.cast(kinds[fitting.index(row)])

    def _refuse(self, wrong: pa.Array, name: str, rule: str, column: pa.Array) -> None:
        """Raise for the first row that is wrong."""
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            raise self._cell_error(row, name, rule, column)

    def _cell_error(self, row: int, name: str, rule: str, column: pa.Array) -> DataError:
        return self.error(row, f"{name!r} {rule} (got {str(column[row].as_py())[:60]!r})")


@dataclass(frozen=True, slots=True)
class Columns:
    """A table whose columns have been found.

    Attributes
    ----------
    path
        File or folder.
    names
        Column of each thing asked for, as far as there is one.
    extra
        Columns that nobody asked for.
    """

    path: Path
    names: dict[str, str]
    extra: tuple[str, ...]
    _sources: tuple[Callable[[], Iterator[Batch]], ...] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, usual: Mapping[str, Sequence[str]], needed: Sequence[str]) -> Columns:
        """Find the columns of a table.

        Parameters
        ----------
        path
            CSV (also .csv.gz) or Parquet file, or a folder of Parquet files.
        usual
            Usual names of each thing; case and punctuation do not matter, the first that fits is taken.
        needed
            Things that have to be there.

        Raises
        ------
        MissingDataError
            The file or a needed column is not there.
        DataError
            It is not a readable table, or a column's name appears twice.
        """
        file = Path(path)
        sources: list[Callable[[], Iterator[Batch]]]
        if file.is_dir() or file.suffix in _PARQUET:
            files = _parquet_files(file)
            columns = list(dict.fromkeys(name for _, parquet in files for name in parquet.schema_arrow.names))
            found = [_find(place, parquet.schema_arrow.names, usual, needed) for place, parquet in files]
            names = {thing: name for of_file in reversed(found) for thing, name in of_file.items()}
            kinds = {
                thing: parquet.schema_arrow.field(name).type
                for (_, parquet), of_file in zip(reversed(files), reversed(found), strict=True)
                for thing, name in of_file.items()
            }
            sources = _parquet_pieces(files, found, kinds)
        else:
            columns = csv_columns(file)
            found = [names := _find(file, columns, usual, needed)]
            sources = [partial(_read_csv, file, names)]
        taken = {name for of_file in found for name in of_file.values()}
        return cls(file, names, tuple(c for c in columns if c not in taken), tuple(sources))

    def with_extra(self, columns: Sequence[str]) -> Columns:
        """Same table with further columns, under their own names."""
        return Columns.open(
            self.path, {n: [c] for n, c in self.names.items()} | {c: [c] for c in columns}, ()
        )

    def batches(self) -> Iterator[Batch]:
        """All rows, piece by piece."""
        for source in self._sources:
            yield from source()

    def whole(self) -> Batch:
        """All rows at once, for tables that fit."""
        batches = list(self.batches())
        if len(batches) == 1:
            return batches[0]
        tables = [batch.table.cast(_plain_schema(batch.table.schema)) for batch in batches]
        try:
            table = pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(f"{self.path}: files have columns of different types ({error})") from None
        return Batch(self.path, 1, table, batches[0].is_text)

    def map(self, function: Callable[[Batch], T], *, parallel: bool) -> list[T]:
        """Apply a function to every piece; in parallel, Dask's threads do it where Dask is installed."""
        if parallel and find_spec("dask") is not None:
            import dask

            tasks = [dask.delayed(_apply, pure=False)(function, source) for source in self._sources]
            results: list[list[T]] = list(dask.compute(*tasks, scheduler="threads"))
        else:
            results = [_apply(function, source) for source in self._sources]
        return [result for of_source in results for result in of_source]


def kept_beside(path: Path, name: str) -> set[str | None]:
    """Values of an entry of the metadata of a table's Parquet files; None where a file has none."""
    if not (path.is_dir() or path.suffix in _PARQUET):
        return {None}
    metadata = [parquet.schema_arrow.metadata or {} for _, parquet in _parquet_files(path)]
    entries = [of_file.get(name.encode()) for of_file in metadata]
    return {None if entry is None else entry.decode(errors="replace") for entry in entries}


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    return (
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def _apply(function: Callable[[Batch], T], source: Callable[[], Iterator[Batch]]) -> list[T]:
    return [function(batch) for batch in source()]


def _find(
    path: Path, columns: Sequence[str], usual: Mapping[str, Sequence[str]], needed: Sequence[str]
) -> dict[str, str]:
    by_name: dict[str, str] = {}
    for column in columns:
        if simplified(column) in by_name:
            raise DataError(f"{path}: column names must be distinct (got {column!r} twice)")
        by_name[simplified(column)] = column
    found = {}
    for thing, names in usual.items():
        fitting = [by_name[simplified(name)] for name in names if simplified(name) in by_name]
        if fitting:
            found[thing] = fitting[0]
        elif thing in needed:
            raise MissingDataError(
                f"{path}: a column of {thing!r} is needed, called {' or '.join(names)} "
                f"(there are {', '.join(columns)})"
            )
    return found


def _parquet_files(path: Path) -> list[tuple[Path, pq.ParquetFile]]:
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.parquet") if not p.name.startswith((".", "_")))
    if not files or not files[0].is_file():
        raise MissingDataError(f"{path}: no such file, or no Parquet files in this folder")
    opened = []
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                opened.append((file, parquet))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error})") from None
    if not sum(parquet.metadata.num_rows for _, parquet in opened):
        raise DataError(f"{path}: empty (no rows)")
    return opened


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    """Type of the same values: texts, and lists of them, in one form whatever their encoding."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    return pa.large_string() if _is_string(kind) else kind


def _parquet_pieces(
    files: Sequence[tuple[Path, pq.ParquetFile]],
    found: Sequence[Mapping[str, str]],
    kinds: Mapping[str, pa.DataType],
) -> list[Callable[[], Iterator[Batch]]]:
    """Readers of a few row groups each."""
    pieces: list[Callable[[], Iterator[Batch]]] = []
    for (path, parquet), names in zip(files, found, strict=True):
        groups: list[int] = []
        first_row, rows, n_bytes = 1, 0, 0
        for group in range(parquet.num_row_groups):
            about = parquet.metadata.row_group(group)
            groups, rows, n_bytes = [*groups, group], rows + about.num_rows, n_bytes + about.total_byte_size
            if n_bytes >= PIECE_BYTES or group == parquet.num_row_groups - 1:
                pieces.append(partial(_read_groups, path, tuple(groups), first_row, names, kinds))
                groups, first_row, rows, n_bytes = [], first_row + rows, 0, 0
    return pieces


def _read_groups(
    path: Path,
    groups: tuple[int, ...],
    first_row: int,
    names: Mapping[str, str],
    kinds: Mapping[str, pa.DataType],
) -> Iterator[Batch]:
    try:
        with pq.ParquetFile(path) as parquet:
            table = parquet.read_row_groups(list(groups), columns=list(names.values()))
        columns = {
            thing: table[names[thing]] if thing in names else pa.nulls(table.num_rows, kind)
            for thing, kind in kinds.items()
        }
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged Parquet file ({error})") from None
    yield Batch(path, first_row, pa.table(columns), False)


def _read_csv(path: Path, names: Mapping[str, str]) -> Iterator[Batch]:
    first_row = 1
    for table in csv_pieces(path, list(names.values()), PIECE_BYTES):
        yield Batch(path, first_row, table.rename_columns(list(names)), True)
        first_row += table.num_rows


def is_list_of_names(kind: pa.DataType) -> bool:
    """Whether cells are lists of strings, or lists that are all empty."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    of = kind.value_type
    return _is_string(of.value_type if pa.types.is_dictionary(of) else of) or pa.types.is_null(of)


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _n_castable(texts: pa.Array, kind: pa.DataType) -> int:
    """Number of texts before the first that is not of a type; all, if there is none."""
    low, high = 0, len(texts) + 1  # the first ``low`` are, the first ``high`` are not
    middle = len(texts)
    while high - low > 1:
        try:
            texts[low:middle].cast(kind)
            low = middle
        except pa.ArrowInvalid:
            high = middle
        middle = (low + high) // 2
    return low
