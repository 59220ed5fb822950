"""Tables from files and from memory, read in batches as often as needed.

A :class:`Table` is a sequence of parts: text files (CSV, TSV, plain or gzip), Parquet files, npz files, or an
Arrow table in memory. A part can say where a row stands, as a person would count it: the line in a text
file, the row elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ppr.errors import DataError, MissingDataError, ParameterError, ResourceError
from ppr.manifest import file_sha256
from ppr.readers.part import ArrowPart, NpzPart, ParquetPart, Part
from ppr.readers.text import IsHeader, TextPart, simplified

__all__ = ["Part", "Table", "file_identity", "is_data_frame", "open_table", "simplified", "write_data_frame"]

_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class Table:
    """A sequence of parts.

    Parameters
    ----------
    name
        The file, folder, or a description, for messages.
    parts
        At least one.

    Raises
    ------
    DataError
        Two columns of a part have the same name.
    """

    name: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            twice = [name for name, count in Counter(part.columns).items() if name and count > 1]
            if twice:
                raise DataError(f"{part.name}: column names must be distinct (got {twice[0]!r} twice)")

    @property
    def n_rows(self) -> int | None:
        """Number of rows, or None where only reading tells."""
        counts = [part.n_rows for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)


def open_table(
    data: Any,
    name: str,
    staging: Path,
    *,
    delimiters: Sequence[str],
    header: bool | None,
    is_header: IsHeader,
) -> Table:
    """Open whatever a user calls a table.

    Parameters
    ----------
    data
        A path or several (files or folders of text, Parquet or npz), an Arrow table or record batch, any
        object with the Arrow stream protocol (record batch reader, pandas or Polars frame), an iterable of
        Arrow batches or tables, or a Spark DataFrame.
    name
        What messages call a table that is not a file.
    staging
        Folder for what can be read once only: streams are copied there as Parquet. A Spark DataFrame is
        written there by its executors, which must therefore share that folder: no row passes through the
        driver's Python, and it works over Spark Connect too.
    delimiters, header, is_header
        See :class:`ppr.readers.text.TextPart`.

    Raises
    ------
    MissingDataError
        A file is missing or a folder has no table in it.
    DataError
        A file cannot be read, or two of its columns have the same name.
    ParameterError
        ``data`` is nothing of the above.
    """
    paths = _paths(data)
    if paths is not None:
        options = {"delimiters": delimiters, "header": header, "is_header": is_header}
        files = [file for path in paths for file in _files(path)]
        return Table(", ".join(map(str, paths)), tuple(_open_file(file, options) for file in files))
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return Table(name, (ArrowPart(data, name),))
    staging.mkdir(parents=True)
    if is_data_frame(data):
        files = write_data_frame(data, staging / "spark")
        return Table(name, tuple(ParquetPart(file, name) for file in files))
    path = staging / "stream.parquet"
    _write_stream(data, path, name)
    return Table(name, (ParquetPart(path, name),))


def file_identity(data: Any) -> list[dict[str, Any]] | None:
    """Size and SHA-256 of each file of a table, in order, or None where it is not made of files."""
    paths = _paths(data)
    if paths is None:
        return None
    files = [file for path in paths for file in _files(path)]
    return [{"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files]


def _paths(data: Any) -> list[Path] | None:
    items = data if isinstance(data, (list, tuple)) and data else [data]
    return [Path(item) for item in items] if all(isinstance(item, (str, Path)) for item in items) else None


def _files(path: Path) -> list[Path]:
    """The file itself, or the files of a folder in order, hidden ones and Spark's markers left out."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingDataError(f"{path}: no such file or folder")
    found = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
    if not found:
        raise MissingDataError(f"{path}: no files in this folder")
    return found


def _is_hidden(path: Path) -> bool:
    return any(step.startswith((".", "_")) for step in path.parts)


def _open_file(path: Path, options: dict[str, Any]) -> Part:
    try:
        if path.suffix in _PARQUET:
            return ParquetPart(path)
        if path.suffix == ".npz":
            return NpzPart(path)
        return TextPart(path, **options)
    except PermissionError:
        raise ResourceError(f"{path}: may not be read") from None


def is_data_frame(data: Any) -> bool:
    """Whether ``data`` is a DataFrame of Spark, classic or Connect."""
    return hasattr(data, "mapInArrow") and hasattr(data, "write")


def write_data_frame(frame: Any, folder: Path, *, by: str | None = None) -> list[Path]:
    """Have Spark's executors write a DataFrame as Parquet; gives the files, in order.

    Parameters
    ----------
    frame
        The DataFrame.
    folder
        Where they go; it must not be there.
    by
        Column by whose values the rows are split into folders; None for one folder, in which there is a file
        even if there are no rows.

    Raises
    ------
    ResourceError
        The files are not here: the folder is not shared with the executors.
    """
    folder = folder.resolve()
    writer = frame.write if by is None else frame.write.partitionBy(by)
    writer.parquet(f"file://{folder}")
    files = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    if not files and (by is None or not folder.is_dir()):
        raise ResourceError(f"{folder}: the Spark executors must share this folder with the driver")
    return files


def _write_stream(data: Any, path: Path, name: str) -> None:
    batches: Iterable[Any]
    if hasattr(data, "__arrow_c_stream__"):
        batches = pa.RecordBatchReader.from_stream(data)
    elif isinstance(data, Iterable) and not isinstance(data, (bytes, dict)):
        batches = data
    else:
        raise ParameterError(
            "'data' must be a path, an Arrow table or stream, an iterable of Arrow batches or a Spark "
            f"DataFrame (got {type(data).__name__})"
        )
    writer: pq.ParquetWriter | None = None
    try:
        for batch in batches:
            if not isinstance(batch, (pa.Table, pa.RecordBatch)):
                raise ParameterError(f"'data' must yield Arrow batches (got {type(batch).__name__})")
            if writer is None:
                writer = pq.ParquetWriter(path, batch.schema, compression="none", use_dictionary=False)
            table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
            if table.schema != writer.schema:
                raise DataError(f"{name}: all batches must have the same columns (got {table.schema.names})")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise DataError(f"{name}: empty (no rows)")
