"""One readable piece of a table: a Parquet file, an npz file, or an Arrow table in memory."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from ppr.errors import DataError

BATCH_ROWS = 1 << 20


class Part(ABC):
    """One file or one table in memory, read in batches as often as needed.

    Attributes
    ----------
    name
        The file, or a description, for messages.
    columns
        Names of the columns; ``column 0``, ``column 1``, … where the file names none.
    named
        Whether the columns have names of their own.
    is_text
        Whether all values arrive as strings, whatever they stand for.
    n_rows
        Number of rows, or None where only reading tells.
    possible_header
        First row of a text file that was taken for data, where it may be a header of unknown names.
    """

    name: str
    columns: tuple[str, ...]
    named: bool = True
    is_text: bool = False
    n_rows: int | None = None
    possible_header: str | None = None

    @abstractmethod
    def read(self, columns: Sequence[int]) -> Iterator[list[pa.Array]]:
        """Batches of the chosen columns, in the order asked for."""

    def pieces(self, n_rows: int) -> list[Part]:
        """The same rows, in order, as parts of at least ``n_rows`` rows, where it can be cut; else itself."""
        return [self]

    def row_number(self, index: int) -> int:
        """Number that a person gives to a row, from its position among the rows read."""
        return index + 1

    def row_error(self, index: int, rule: str) -> DataError:
        """Error that names this part, a row, and the rule that the row breaks."""
        return DataError(f"{self.name}: row {self.row_number(index)}: {rule}")


class ArrowPart(Part):
    """An Arrow table in memory."""

    def __init__(self, table: pa.Table, name: str) -> None:
        self.name = name
        self.columns = tuple(table.column_names)
        self.n_rows = table.num_rows
        self._table = table

    def select(self, columns: Sequence[int]) -> pa.Table:
        """The chosen columns as a table, in the order asked for."""
        return self._table.select(list(columns))

    def read(self, columns: Sequence[int]) -> Iterator[list[pa.Array]]:
        """Batches of the chosen columns, in the order asked for."""
        for batch in self.select(columns).to_batches(max_chunksize=BATCH_ROWS):
            yield batch.columns


class ParquetPart(Part):
    """A Parquet file."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or str(path)
        self._path = path.absolute()  # a worker may read it from elsewhere
        self._groups: range | None = None  # the row groups that are read; None for all
        self._first_row = 0
        with self._open() as file:
            self.columns = tuple(file.schema_arrow.names)
            self.n_rows = file.metadata.num_rows

    def pieces(self, n_rows: int) -> list[Part]:
        """The file cut into runs of row groups."""
        with self._open() as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        pieces: list[Part] = []
        first, first_row, row = 0, 0, 0
        for group, size in enumerate(sizes, start=1):
            row += size
            if row - first_row >= n_rows or group == len(sizes):
                piece = copy(self)
                piece._groups, piece._first_row = range(first, group), first_row
                piece.n_rows = row - first_row
                pieces.append(piece)
                first, first_row = group, row
        return pieces or [self]

    def row_number(self, index: int) -> int:
        """Number of a row in the file, from 1."""
        return self._first_row + index + 1

    def read(self, columns: Sequence[int]) -> Iterator[list[pa.Array]]:
        """Batches of the chosen columns, in the order asked for."""
        names = [self.columns[column] for column in columns]
        with self._open() as file:
            try:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=self._groups, columns=names):
                    yield [batch.column(name) for name in names]
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self.name}: damaged Parquet file ({error})") from error

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name}: not a readable Parquet file ({error})") from error


class NpzPart(Part):
    """An npz file: a SciPy sparse matrix, or arrays ``src``, ``dst`` and perhaps ``weight``.

    A matrix has an edge from its row number to its column number for each stored entry. The file is
    decompressed into memory as a whole at each reading.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path.absolute()  # a worker may read it from elsewhere
        with self._open() as file:
            self._is_matrix = "format" in file.files
            self.columns = ("src", "dst", "weight") if self._is_matrix else tuple(file.files)

    def read(self, columns: Sequence[int]) -> Iterator[list[pa.Array]]:
        """Batches of the chosen columns, in the order asked for."""
        with self._open() as file:
            try:
                arrays = self._matrix_arrays(file) if self._is_matrix else self._plain_arrays(file, columns)
            except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.name}: not a readable npz file ({error})") from error
        lengths = {self.columns[column]: len(arrays[column]) for column in columns}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{self.name}: the arrays must have equal lengths (got {lengths})")
        for start in range(0, next(iter(lengths.values())), BATCH_ROWS):
            yield [pa.array(arrays[column][start : start + BATCH_ROWS]) for column in columns]

    def _matrix_arrays(self, file: Any) -> dict[int, npt.NDArray[Any]]:
        layout = file["format"].item()
        name = layout.decode() if isinstance(layout, bytes) else str(layout)
        if name in ("csr", "csc"):
            make = sp.csr_matrix if name == "csr" else sp.csc_matrix
            matrix = make((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"]))
            matrix = matrix.tocoo()
        elif name == "coo":
            matrix = sp.coo_matrix((file["data"], (file["row"], file["col"])), shape=tuple(file["shape"]))
        else:
            raise ValueError(f"a sparse matrix must be csr, csc or coo, this one is {name}")
        return {0: matrix.row, 1: matrix.col, 2: matrix.data}

    def _plain_arrays(self, file: Any, columns: Sequence[int]) -> dict[int, npt.NDArray[Any]]:
        arrays = {column: file[self.columns[column]] for column in columns}
        for column, array in arrays.items():
            if array.ndim != 1:
                raise ValueError(f"'{self.columns[column]}' must have one dimension, it has {array.ndim}")
        return arrays

    @contextmanager
    def _open(self) -> Iterator[Any]:
        # NumPy leaves a file open that it cannot read, so the opening is done here.
        with self._path.open("rb") as raw:
            try:
                file = np.load(raw, allow_pickle=False)
            except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise DataError(f"{self.name}: not a readable npz file ({error})") from error
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{self.name}: not an npz file")
            with file:
                yield file
