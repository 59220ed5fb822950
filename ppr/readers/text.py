"""Text files: comma-, tab- or otherwise separated values, plain or gzip.

Everything is read as strings, so that no guess of a type from the first rows can change what a key is.
The fast reader does not know line numbers; when a row is wrong, the file is read once more, line by line,
to name it.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv as pc_csv

from ppr.errors import DataError, MissingDataError
from ppr.readers.part import Part

IsHeader = Callable[[Sequence[str]], bool]

BLOCK_BYTES = 1 << 24
COMMENT = b"#"
_GZIP_MAGIC = b"\x1f\x8b"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_SHOWN_CHARACTERS = 120
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_NUMBER = re.compile(r"\s*[+-]?[\d.]+(e[+-]?\d+)?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Layout:
    delimiter: str
    skip_lines: int  # comments, empty lines and the header before the first row
    header: list[str] | None
    n_columns: int
    possible_header: str | None


class TextPart(Part):
    """A text file in UTF-8, with lines that end in LF, CRLF or CR.

    Lines before the first row that begin with ``#`` are comments; empty lines are passed over. Columns have
    the names of the header line, if there is one.

    Parameters
    ----------
    path
        The file; gzip is recognised by its content.
    delimiters
        Characters that may separate the fields; the first one that the first line has does.
    header
        Whether the first line names the columns, or None to look.
    is_header
        Whether the fields of the first line, in small letters without punctuation, are column names.
    """

    is_text = True

    def __init__(
        self, path: Path, *, delimiters: Sequence[str], header: bool | None, is_header: IsHeader
    ) -> None:
        self.name = str(path)
        self._path = path.absolute()  # a worker may read it from elsewhere
        self._layout = self._sniff(delimiters, header, is_header)
        self.named = self._layout.header is not None
        self.possible_header = self._layout.possible_header
        self.columns = tuple(self._layout.header or (f"column {i}" for i in range(self._layout.n_columns)))

    def read(self, columns: Sequence[int]) -> Iterator[list[pa.Array]]:
        """Batches of the chosen columns as strings, in the order asked for."""
        names = [f"f{i}" for i in range(self._layout.n_columns)]
        chosen = [names[column] for column in columns]
        with _open(self._path) as file:
            try:
                reader = pc_csv.open_csv(
                    file,
                    read_options=pc_csv.ReadOptions(
                        block_size=BLOCK_BYTES, skip_rows=self._layout.skip_lines, column_names=names
                    ),
                    parse_options=pc_csv.ParseOptions(delimiter=self._layout.delimiter),
                    convert_options=pc_csv.ConvertOptions(
                        column_types=dict.fromkeys(chosen, pa.string()), include_columns=chosen
                    ),
                )
                for batch in reader:
                    yield batch.columns
            except pa.ArrowInvalid as error:
                # An empty file with its header only is not an error here; the caller counts rows.
                if "Empty CSV file" not in str(error):
                    raise self._explain(error) from error

    def row_number(self, index: int) -> int:
        """Number of the line that holds a row, from 1."""
        number, _ = next(islice(self._rows(), index, None))
        return number

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of each line without its end, where the fast reader sees one."""
        with (
            _open(self._path) as file,
            io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", errors="surrogateescape") as lines,
        ):
            for number, line in enumerate(lines, start=1):
                yield number, line.rstrip("\n").encode("utf-8", errors="surrogateescape")

    def _rows(self) -> Iterator[tuple[int, bytes]]:
        """Line number and bytes of each row."""
        for number, line in self._lines():
            if number > self._layout.skip_lines and line:
                yield number, line

    def _explain(self, error: pa.ArrowInvalid) -> DataError:
        """Error for the first malformed row, found by reading the file line by line."""
        for number, line in self._rows():
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                return DataError(f"{self.name}: row {number}: not valid UTF-8 ({line[:_SHOWN_CHARACTERS]!r})")
            n_fields = len(_split(text, self._layout.delimiter))
            if n_fields != self._layout.n_columns:
                return DataError(
                    f"{self.name}: row {number}: must have {self._layout.n_columns} fields "
                    f"(got {n_fields}: {text[:_SHOWN_CHARACTERS]!r})"
                )
        return DataError(f"{self.name}: malformed ({error})")

    def _sniff(self, delimiters: Sequence[str], header: bool | None, is_header: IsHeader) -> _Layout:
        comments, first, second = self._head()
        delimiter = next((mark for mark in delimiters if mark in first), delimiters[0])
        fields = [field.strip() for field in _split(first, delimiter)]
        possible_header = None
        if header is None:
            header = is_header([simplified(field) for field in fields])
            if not header and second is not None:
                self._refuse_unknown_header(fields, _split(second, delimiter))
            if not header and not any(_NUMBER.fullmatch(field) for field in fields):
                possible_header = first
        return _Layout(
            delimiter=delimiter,
            skip_lines=comments + int(header),
            header=fields if header else None,
            n_columns=len(fields),
            possible_header=possible_header,
        )

    def _head(self) -> tuple[int, str, str | None]:
        """Number of lines before the first one with content, that line, and the next one with content."""
        skipped = 0
        content: list[str] = []
        with _open(self._path) as file:
            if file.read(2) in _UTF16_MARKS:
                raise DataError(f"{self.name}: must be UTF-8 (it begins with the byte order mark of UTF-16)")
        for number, line in self._lines():
            if b"\0" in line:
                raise DataError(f"{self.name}: row {number}: must be UTF-8 text (it holds NUL bytes)")
            if not content and (line.startswith(COMMENT) or not line.strip()):
                skipped += 1
            elif line.strip():
                content.append(line.decode("utf-8", errors="replace"))
            if len(content) == 2:
                break
        if not content:
            raise DataError(f"{self.name}: empty (no rows)")
        return skipped, content[0], content[1] if len(content) > 1 else None

    def _refuse_unknown_header(self, first: list[str], second: list[str]) -> None:
        """Refuse a first line of words over rows of integers: as data, it would make all keys strings."""
        looks_like_header = not any(_INTEGER.fullmatch(field) for field in first[:2])
        if looks_like_header and len(second) > 1 and all(_INTEGER.fullmatch(field) for field in second[:2]):
            raise MissingDataError(
                f"{self.name}: the first line looks like a header with unknown names ({', '.join(first)}); "
                "name the columns, or say that there is no header"
            )


class _CheckedGzip(gzip.GzipFile):
    """A gzip file that reports truncation and damage as errors of the data."""

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error

    def read1(self, size: int = -1) -> bytes:
        try:
            return super().read1(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self.name}: truncated or damaged gzip file ({error})")


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return cast(IO[bytes], _CheckedGzip(path) if compressed else path.open("rb"))


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file in UTF-8, plain or gzip (recognised by its content), with their numbers from 1.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is not UTF-8, or a damaged gzip file.
    """
    try:
        with _open(path) as file, io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig") as lines:
            yield from enumerate(lines, start=1)
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from None


def simplified(name: str) -> str:
    """Column name in small letters without punctuation, as usual names are compared."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])
