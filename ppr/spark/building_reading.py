"""The task that reads the inputs of a graph built on Spark, by the local builder's readers and rules."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppr.errors import DataError, ResourceError
from ppr.inputs import EdgeTable, KeyType, NodeList
from ppr.keys import check_utf8
from ppr.spark.building_tasks import Batches, parquet_name, receipt, task_at, whole_file


@dataclass(frozen=True)
class Piece:
    """What one task reads: a table of a single part, which is a file or some row groups of one.

    Parameters
    ----------
    table
        Number of the table among all, edge tables first.
    source
        The table, with the one part.
    """

    table: int
    source: EdgeTable | NodeList


@dataclass(frozen=True)
class ReadPieces:
    """Read and check the pieces whose numbers arrive, and write their rows in one form, as Parquet.

    Rows whose keys are all integers and others go into folders of their own: only all receipts together
    tell what the keys of the graph are.

    Parameters
    ----------
    pieces
        The pieces.
    key_type
        As for :func:`ppr.build.build_graph`.
    weighted
        Whether edges are written with weights.
    folder
        Folder with ``edges-integers``, ``edges-strings``, ``nodes-integers`` and ``nodes-strings``.
    """

    pieces: tuple[Piece, ...]
    key_type: KeyType
    weighted: bool
    folder: str

    def __call__(self, batches: Batches) -> Batches:
        """Read pieces; a receipt tells what was found, or which rule was broken."""
        with task_at(self.folder) as folder:
            for batch in batches:
                for number in batch.column("id").to_pylist():
                    yield self._read(folder, number)

    def _read(self, folder: Path, number: int) -> pa.RecordBatch:
        piece = self.pieces[number]
        rows = 0
        kinds: set[str] = set()
        places: set[str] = set()
        facts: dict[str, Any] = {"number": number, "error": None, "in_keys": False}
        try:
            with _Files(folder, parquet_name(number)) as files:
                for place, kind, table in self._tables(piece):
                    files.write(place, table)
                    places.add(place)
                    kinds.update(kind)
                    rows += table.num_rows
        except (DataError, FileNotFoundError) as error:
            if not isinstance(error, DataError) or isinstance(error.__cause__, FileNotFoundError):
                name = piece.source.table.parts[0].name
                raise ResourceError(
                    f"{name}: not there on the worker {socket.gethostname()}; the input must lie on storage "
                    "that driver and workers share"
                ) from error
            # The local builder reads all keys before it reads a weight: so does the order of what is told.
            earlier = _error_of_keys(piece, self.key_type)
            facts["in_keys"] = earlier is not None
            told = earlier or error
            facts["error"] = [type(told).__name__, str(told)]
        written = [] if facts["error"] else sorted(f"{place}/{parquet_name(number)}" for place in places)
        return receipt(**facts, rows=rows, kinds=sorted(kinds), files=written)

    def _tables(self, piece: Piece) -> Iterator[tuple[str, list[str], pa.Table]]:
        """Checked rows, after the folder that they belong to and, for a list of nodes, their kind."""
        source = piece.source
        if isinstance(source, NodeList):
            for kind, keys in source.batches(self.key_type):
                _check(keys)
                table = pa.table({"kind": pa.repeat(kind, len(keys)), "key": keys})
                yield f"nodes-{_form(keys)}", [kind], table
            return
        for batch in source.batches(self.key_type, weights=True):
            _check(batch.src)
            _check(batch.dst)
            src, dst = _of_one_type(batch.src, batch.dst)
            columns = {"table": np.full(len(src), piece.table, np.int32), "src": src, "dst": dst}
            if self.weighted:
                columns["weight"] = np.ones(len(src)) if batch.weight is None else batch.weight
            yield f"edges-{_form(src)}", [], pa.table(columns)


class _Files:
    """Parquet files of one name in several folders, each begun when something is written to it."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._open = ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> _Files:
        return self

    def write(self, place: str, table: pa.Table) -> None:
        if place not in self._writers:
            path = self._open.enter_context(whole_file(self._folder / place / self._name))
            self._writers[place] = self._open.enter_context(pq.ParquetWriter(path, table.schema))
        self._writers[place].write_table(table)

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)


def _form(keys: pa.Array) -> str:
    return "integers" if pa.types.is_int64(keys.type) else "strings"


def _of_one_type(src: pa.Array, dst: pa.Array) -> tuple[pa.Array, pa.Array]:
    if src.type == dst.type:
        return src, dst
    return src.cast(pa.large_string()), dst.cast(pa.large_string())


def _check(keys: pa.Array) -> None:
    if pa.types.is_int64(keys.type):
        return
    try:
        check_utf8(keys)
    except DataError:
        check_utf8(keys.unique())  # where the local builder looks, so that its message is the same
        raise


def _error_of_keys(piece: Piece, key_type: KeyType) -> DataError | None:
    """First error of a piece when only its keys are read."""
    source = piece.source
    try:
        if isinstance(source, NodeList):
            for _, keys in source.batches(key_type):
                _check(keys)
        else:
            for batch in source.batches(key_type, weights=False):
                _check(batch.src)
                _check(batch.dst)
    except DataError as error:
        return error
    return None
