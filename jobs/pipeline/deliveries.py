"""Deliveries: the files of interactions and choices that a run reads, and whether they are there and fit.

All files of a kind are checked against each other before anything is read: the same columns in all of them,
with the same kind of content. A column that is gone, or has another name or type since yesterday, is a fault
of the delivery, and no table is made that silently lacks it.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from jobs.errors import ConfigurationError, NotYetError
from jobs.pipeline.record import checksums
from jobs.settings import GraphSettings, PipelineSettings
from ppr.errors import DataError, MissingDataError
from ppr.manifest import file_sha256

INTERACTIONS, CHOICES = "interactions", "choices"
NEEDED = {INTERACTIONS: ("user", "item"), CHOICES: ("user", "query", "llm")}
_PARQUET = (".parquet", ".pq")
_TEXT = (".csv", ".csv.gz")
_PATTERN = frozenset("*?[")
_KEYS = ("user", "item", "query", "llm", "task")
_NUMBERS = ("weight", "thumbs", "reward", "cost_usd", "latency_ms")
_KINDS = {
    **dict.fromkeys(_KEYS, ("texts", "integers")),
    **dict.fromkeys(_NUMBERS, ("numbers", "integers")),
    "timestamp": ("times", "numbers", "integers", "texts"),
    "offered": ("lists",),
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """A file.

    Attributes
    ----------
    table
        ``interactions`` or ``choices``.
    path
        The file.
    sha256
        Digest of its content, hex.
    """

    table: str
    path: Path
    sha256: str

    @property
    def is_empty(self) -> bool:
        """Whether it has columns but no rows."""
        if self.path.suffix in _PARQUET:
            return int(pq.read_metadata(self.path).num_rows) == 0
        with pa.input_stream(self.path, compression="detect") as stream:
            lines = stream.read(1 << 20).splitlines()
        return sum(1 for line in lines if line.strip()) <= 1

    @property
    def breaks_off(self) -> bool:
        """Whether it is a CSV file whose last line has no end: it may be cut short."""
        if self.path.suffix != ".csv":
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) not in b"\r\n"


def usual_names(table: str, graph: GraphSettings) -> dict[str, tuple[str, ...]]:
    """Usual names of the columns of a kind of table; those of interactions as the graph's settings say.

    Raises
    ------
    ConfigurationError
        The settings give a column by position.
    """
    if table == CHOICES:
        from router.dataset.events import USUAL_NAMES

        return USUAL_NAMES
    names = {"user": ("user", "user_id"), "item": ("item", "item_id"), "weight": ("weight",)}
    for thing, setting in (("user", "src"), ("item", "dst"), ("weight", "weight")):
        column = getattr(graph, setting)
        if isinstance(column, int):
            raise ConfigurationError(
                f"[graph] '{setting}' must be the name of a column in a pipeline (got position {column})"
            )
        if column is not None:
            names[thing] = (column,)
    return {**names, "timestamp": ("timestamp", "time", "datetime", "date", "ts")}


def check_sources(settings: PipelineSettings) -> None:
    """Check that the settings name data, and that the tables beside the deliveries are there.

    Raises
    ------
    ConfigurationError
        They name no data at all, or choices without a table of LLMs.
    MissingDataError
        A table is not there.
    """
    if not settings.interactions and not settings.choices and settings.store is None:
        raise ConfigurationError("[pipeline] 'interactions', 'choices' or 'store' must name some data")
    if settings.llms is None and (settings.choices or settings.store is not None):
        raise ConfigurationError("[pipeline] 'llms' must name the table of the LLMs where there are choices")
    for name in ("llms", "queries", "users"):
        path = getattr(settings, name)
        if path is not None and not path.exists():
            raise MissingDataError(f"[pipeline] {name!r}: {path}: no such file or folder")


def find_deliveries(settings: PipelineSettings) -> list[Delivery]:
    """Files of all deliveries, by name.

    Raises
    ------
    MissingDataError
        A file or folder that is named is not there, or a link leads nowhere. A pattern, or a folder, may be
        empty.
    DataError
        A file is neither Parquet nor CSV.
    NotYetError
        A file has no content at all, not even a header.
    """
    found = []
    for table, places in ((INTERACTIONS, settings.interactions), (CHOICES, settings.choices)):
        files = sorted({file for place in places for file in _files(place)})
        found += [Delivery(table, file, file_sha256(file)) for file in files]
    for delivery in found:
        if _holds_nothing(delivery.path):
            raise NotYetError(f"not delivered yet: {delivery.path} is an empty file, without a header")
    return found


def check_unchanged(deliveries: Iterable[Delivery], tables: Mapping[Path, Sequence[str] | None]) -> None:
    """Check that files are still what they were.

    Parameters
    ----------
    deliveries
        Files.
    tables
        Checksums of further tables, by their place.

    Raises
    ------
    NotYetError
        One is not: it was written to, or went.
    """
    expected = {delivery.path: [delivery.sha256] for delivery in deliveries}
    for path, before in {**expected, **tables}.items():
        try:
            same = checksums(path) == before
        except FileNotFoundError:
            same = False
        if not same:
            raise NotYetError(f"{path}: changed while it was read; try again")


def check_ready(settings: PipelineSettings, end: datetime) -> list[str]:
    """Whether what the run waits for is there, and find it.

    Parameters
    ----------
    settings
        Have the patterns.
    end
        End of the interval, in the zone whose days the deliveries are named by.

    Raises
    ------
    NotYetError
        Something is not, or is an empty file.
    """
    last_day = (end - timedelta(microseconds=1)).date()
    found: list[str] = []
    missing = []
    for pattern in settings.wait_for:
        place = pattern.format(date=last_day)
        there = [path for path in _matching(place) if path.exists() and not _holds_nothing(path)]
        found += sorted(map(str, there))
        if not there:
            missing.append(place)
    if missing:
        raise NotYetError(f"not delivered yet: {', '.join(missing)}")
    return found


def check_columns(deliveries: Sequence[Delivery], settings: PipelineSettings, graph: GraphSettings) -> None:
    """Check all files against what is needed and against each other.

    Raises
    ------
    MissingDataError
        A file lacks a column that is needed, or that others of its kind have.
    DataError
        A file cannot be read, or a column holds another kind of content than it has to or than in others.
    """
    for table in (INTERACTIONS, CHOICES):
        files = [delivery.path for delivery in deliveries if delivery.table == table]
        usual = usual_names(table, graph)
        found = {path: _columns(path, usual) for path in files}
        for path, columns in found.items():
            _check_needed(path, columns, {thing: usual[thing] for thing in NEEDED[table]})
        _check_against_each_other(found, settings.may_lack)


def _files(place: str) -> list[Path]:
    if _PATTERN & set(place):
        files = [_followed(path) for path in _matching(place)]
    elif not _followed(Path(place)).exists():
        raise MissingDataError(f"{place}: no such file or folder")
    else:
        files = [Path(place)]
    return [file for path in files for file in (_inside(path) if path.is_dir() else [_readable(path)])]


def _matching(pattern: str) -> list[Path]:
    """What fits a pattern, which may be absolute."""
    return [Path(path) for path in glob.glob(pattern, recursive=True)]  # noqa: PTH207  # of no one folder


def _inside(folder: Path) -> list[Path]:
    """Files of a folder; hidden ones and markers such as ``_SUCCESS`` are nobody's delivery."""
    inside = (
        p for p in folder.rglob("*") if not any(s.startswith((".", "_")) for s in p.relative_to(folder).parts)
    )
    return [_readable(p) for p in inside if _followed(p).is_file()]


def _followed(path: Path) -> Path:
    """The path, if it is not a link to nothing."""
    if path.is_symlink() and not path.exists():
        raise MissingDataError(f"{path}: a link to what is not there ({path.readlink()})")
    return path


def _holds_nothing(path: Path) -> bool:
    """Whether a delivery has no byte yet; of other files, such as a marker, nothing is expected."""
    return path.is_file() and path.name.endswith(_PARQUET + _TEXT) and not path.stat().st_size


def _readable(path: Path) -> Path:
    if not path.name.endswith(_PARQUET + _TEXT):
        raise DataError(f"{path}: a delivery must end in .parquet, .csv or .csv.gz")
    return path


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    kind: str | None  # of its content; None where that is not known before it is read
    type: str


def _columns(path: Path, usual: Mapping[str, Sequence[str]]) -> dict[str, _Column]:
    """Columns of a file that stand for something, and what they hold."""
    from ppr.readers.text import simplified

    schema, is_text = _schema(path)
    named: dict[str, pa.Field] = {}
    for column in schema:
        if simplified(column.name) in named:
            raise DataError(f"{path}: column names must be distinct (got {column.name!r} twice)")
        named[simplified(column.name)] = column
    found = {}
    for thing, names in usual.items():
        column = next((named[simplified(name)] for name in names if simplified(name) in named), None)
        if column is None:
            continue
        kind = None if is_text else _kind(column.type)
        if kind is not None and kind not in _KINDS[thing]:
            raise DataError(
                f"{path}: column {column.name!r} must hold {' or '.join(_KINDS[thing])} (got {column.type})"
            )
        found[thing] = _Column(column.name, kind, str(column.type))
    return found


def _schema(path: Path) -> tuple[pa.Schema, bool]:
    """Columns of a file, and whether all of them are text."""
    try:
        if path.suffix in _PARQUET:
            return pq.read_schema(path), False
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with pyarrow.csv.open_csv(path, parse_options=parse) as reader:
            return reader.schema, True
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable table ({error})") from None


def _kind(of: pa.DataType) -> str | None:
    if pa.types.is_dictionary(of):
        return _kind(of.value_type)
    if pa.types.is_null(of):
        return None
    tests = {
        "texts": (pa.types.is_string, pa.types.is_large_string),
        "integers": (pa.types.is_integer,),
        "numbers": (pa.types.is_floating, pa.types.is_decimal),
        "times": (pa.types.is_timestamp, pa.types.is_date),
        "lists": (pa.types.is_list, pa.types.is_large_list),
    }
    return next((kind for kind, are in tests.items() if any(is_one(of) for is_one in are)), "something else")


def _check_needed(path: Path, columns: Mapping[str, _Column], needed: Mapping[str, Sequence[str]]) -> None:
    for thing, names in needed.items():
        if thing not in columns:
            there = ", ".join(_schema(path)[0].names)
            raise MissingDataError(
                f"{path}: a column of {thing!r} is needed, called {' or '.join(names)} (there are {there})"
            )


def _check_against_each_other(found: Mapping[Path, Mapping[str, _Column]], may_lack: Sequence[str]) -> None:
    """Every column that one file has, all have; and in each it holds the same kind of content."""
    for thing in dict.fromkeys(thing for columns in found.values() for thing in columns):
        having = [path for path, columns in found.items() if thing in columns]
        lacking = [path for path in found if path not in set(having)]
        if lacking and thing not in may_lack:
            way_out = f"if deliveries may lack it, name {thing!r} in [pipeline] 'may_lack'"
            if thing == "task":
                way_out = "all deliveries of choices must name tasks, or none"
            raise MissingDataError(
                f"{lacking[0]}: column {found[having[0]][thing].name!r} is missing, which {len(having)} "
                f"other deliveries have, such as {having[0]} ({way_out})"
            )
        columns = {path: found[path][thing] for path in having}
        kinds = Counter(_class(thing, column.kind) for column in columns.values() if column.kind is not None)
        if len(kinds) > 1:
            usual = kinds.most_common(1)[0][0]
            odd = next(p for p, c in columns.items() if c.kind and _class(thing, c.kind) != usual)
            other = next(p for p, c in columns.items() if c.kind and _class(thing, c.kind) == usual)
            raise DataError(
                f"{odd}: column {columns[odd].name!r} must hold {usual} as in {kinds[usual]} other "
                f"deliveries, such as {other} (got {columns[odd].type})"
            )


def _class(thing: str, kind: str | None) -> str:
    """Kinds that do not differ: a number may come without a fraction."""
    return "numbers" if kind == "integers" and thing not in _KEYS else str(kind)


def same_twice(deliveries: Iterable[Delivery]) -> list[tuple[Delivery, Delivery]]:
    """Files with the content of an earlier one, behind that one."""
    first: dict[tuple[str, str], Delivery] = {}
    twice = []
    for delivery in deliveries:
        known = first.setdefault((delivery.table, delivery.sha256), delivery)
        if known is not delivery:
            twice.append((known, delivery))
    return twice
