"""What a graph is built from: tables of edges or interactions, tables of nodes, and their rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ppr.errors import DataError, MissingDataError, ParameterError
from ppr.kernels.edges import parse_decimals
from ppr.readers import Part, Table, file_identity, open_table, simplified

# Looked for in this order in the first line of a text file. A list of nodes may have a single column, of
# names with blanks in them.
EDGE_DELIMITERS = "\t,;| "
NODE_DELIMITERS = "\t,;|"

KeyType = Literal["auto", "int64", "string"]

# Column names, as `simplified` gives them, and the kinds that they speak of.
_USUAL_PAIRS = (
    ("src", "dst", "node", "node"),
    ("source", "target", "node", "node"),
    ("source", "destination", "node", "node"),
    ("from", "to", "node", "node"),
    ("fromnodeid", "tonodeid", "node", "node"),
    ("user", "item", "user", "item"),
    ("userid", "itemid", "user", "item"),
    ("user", "llm", "user", "llm"),
    ("userid", "llmid", "user", "llm"),
)
_USUAL_WEIGHT = "weight"
_USUAL_KEYS = ("key", "node", "id", "nodeid")
_USUAL_KIND = "kind"
_EDGE_NAMES = frozenset({name for pair in _USUAL_PAIRS for name in pair[:2]} | {_USUAL_WEIGHT})
_NODE_NAMES = frozenset({*_USUAL_KEYS, _USUAL_KIND} - {"node"})


@dataclass(frozen=True, slots=True)
class EdgeInput:
    """A table of edges ``(src, dst[, weight])`` or interactions ``(user, item[, weight])``.

    Other columns, such as a timestamp, are ignored.

    Parameters
    ----------
    data
        See :func:`ppr.readers.open_table`; or a GraphFrame, which has its own columns and kinds, see
        :mod:`ppr.frames`.
    src, dst, weight
        Columns by name or, from 0, by position. None looks for usual names (``src`` and ``dst``, ``source``
        and ``target``, ``user`` and ``item``, ``user_id`` and ``item_id``, ``weight``, …); a file without a
        header is taken as source, destination and, where there is a third column, weight.
    weighted
        False ignores any weight: each row counts 1.
    src_kind, dst_kind
        Node kinds. None takes ``user`` and ``item`` or ``llm`` by the columns' names, else ``node``.
    directed
        Whether an edge leads one way only. None means yes between nodes of one kind, no between two kinds.
    delimiter, header
        For text files; None looks: for the first of tab, comma, semicolon, bar and blank in the first line,
        and for usual column names in it.
    """

    data: Any
    src: str | int | None = None
    dst: str | int | None = None
    weight: str | int | None = None
    weighted: bool = True
    src_kind: str | None = None
    dst_kind: str | None = None
    directed: bool | None = None
    delimiter: str | None = None
    header: bool | None = None

    def __post_init__(self) -> None:
        if (self.src is None) != (self.dst is None):
            raise ParameterError(
                f"'src' and 'dst' must be given together (got {self.src!r} and {self.dst!r})"
            )
        if self.src is not None and self.src == self.dst:
            raise ParameterError(f"'src' and 'dst' must be different columns (got {self.src!r} twice)")
        if self.weight is not None and not self.weighted:
            raise ParameterError("'weight' must not be given when 'weighted' is false")
        for name in ("src_kind", "dst_kind"):
            if getattr(self, name) == "":
                raise ParameterError(f"'{name}' must not be empty")
        _check_delimiter(self.delimiter)


@dataclass(frozen=True, slots=True)
class NodeInput:
    """A table of nodes, for those that no edge names.

    Parameters
    ----------
    data
        See :func:`ppr.readers.open_table`.
    key
        Column of the keys, by name or position; None looks for ``key``, ``node``, ``id``, or takes the first.
    kind_column
        Column of the kinds; None looks for ``kind`` or, in a file without a header, takes the second.
    kind
        Kind of all nodes of a table without a column of kinds.
    delimiter, header
        For text files; None looks, as above, but not for blanks.
    """

    data: Any
    key: str | int | None = None
    kind_column: str | int | None = None
    kind: str | None = None
    delimiter: str | None = None
    header: bool | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind_column is not None:
            raise ParameterError("'kind' and 'kind_column' must not be given both")
        _check_delimiter(self.delimiter)


def _check_delimiter(delimiter: str | None) -> None:
    if delimiter is not None and (len(delimiter.encode()) != 1 or delimiter in '\r\n"'):
        raise ParameterError(f"'delimiter' must be one ASCII character (got {delimiter!r})")


def describe_input(source: EdgeInput | NodeInput) -> dict[str, Any]:
    """Options of an input and its files' checksums, as the manifest stores them."""
    options = {name: getattr(source, name) for name in source.__slots__ if name != "data"}
    return {**options, "files": file_identity(source.data)}


@dataclass(frozen=True, slots=True)
class EdgeBatch:
    """Some rows of an edge table: Arrow keys (int64 or large_string) and float64 weights, or None for 1."""

    src: pa.Array
    dst: pa.Array
    weight: npt.NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """An opened :class:`EdgeInput` with its columns and kinds resolved."""

    table: Table
    columns: tuple[tuple[int, ...], ...]  # per part: source, destination and perhaps weight
    src_kind: str
    dst_kind: str
    directed: bool

    @property
    def weighted(self) -> bool:
        """Whether any row carries a weight."""
        return any(len(columns) > 2 for columns in self.columns)

    def batches(self, key_type: KeyType, *, weights: bool) -> Iterator[EdgeBatch]:
        """Read and check all rows, the weights only when asked for."""
        for part, columns in zip(self.table.parts, self.columns, strict=True):
            row = 0
            for arrays in part.read(columns if weights else columns[:2]):
                names = [part.columns[column] for column in columns]
                yield EdgeBatch(
                    src=read_keys(arrays[0], part, row, names[0], key_type),
                    dst=read_keys(arrays[1], part, row, names[1], key_type),
                    weight=_read_weights(arrays[2], part, row, names[2]) if len(arrays) > 2 else None,
                )
                row += len(arrays[0])


@dataclass(frozen=True, slots=True)
class NodeList:
    """An opened :class:`NodeInput` with its columns resolved."""

    table: Table
    columns: tuple[tuple[int, ...], ...]  # per part: key and perhaps kind
    kind: str

    def batches(self, key_type: KeyType) -> Iterator[tuple[str, pa.Array]]:
        """Read and check all rows, as pairs of a kind and some of its keys."""
        for part, columns in zip(self.table.parts, self.columns, strict=True):
            row = 0
            for arrays in part.read(columns):
                keys = read_keys(arrays[0], part, row, part.columns[columns[0]], key_type)
                row += len(keys)
                if len(arrays) == 1:
                    yield self.kind, keys
                    continue
                kinds = read_keys(arrays[1], part, row - len(keys), part.columns[columns[1]], "string")
                for kind in kinds.unique().to_pylist():
                    yield kind, keys.filter(pc.equal(kinds, kind))


def open_edges(source: EdgeInput, name: str, staging: Path) -> EdgeTable:
    """Open an edge table and resolve its columns and kinds."""
    usual = _EDGE_NAMES | _given(source.src, source.dst, source.weight)

    def is_header(names: Sequence[str]) -> bool:
        return any(name in usual for name in names)

    delimiters = source.delimiter or EDGE_DELIMITERS
    table = open_table(
        source.data, name, staging, delimiters=delimiters, header=source.header, is_header=is_header
    )
    columns = tuple(_edge_columns(part, source) for part in table.parts)
    src_kind, dst_kind = _usual_kinds(table.parts[0], columns[0])
    src_kind, dst_kind = source.src_kind or src_kind, source.dst_kind or dst_kind
    directed = src_kind == dst_kind if source.directed is None else source.directed
    return EdgeTable(table, columns, src_kind, dst_kind, directed)


def open_nodes(source: NodeInput, name: str, staging: Path) -> NodeList:
    """Open a node table and resolve its columns."""
    usual = _NODE_NAMES | _given(source.key, source.kind_column)

    def is_header(names: Sequence[str]) -> bool:
        # Behind the first column, ``node`` is more likely a kind.
        return names[0] == "node" or any(name in usual for name in names)

    delimiters = source.delimiter or NODE_DELIMITERS
    table = open_table(
        source.data, name, staging, delimiters=delimiters, header=source.header, is_header=is_header
    )
    columns = tuple(_node_columns(part, source) for part in table.parts)
    return NodeList(table, columns, source.kind or "node")


def read_keys(array: pa.Array, part: Part, first_row: int, column: str, key_type: KeyType) -> pa.Array:
    """Check keys and give them as int64 or large_string.

    In text, a batch of integers in plain decimal form is taken as int64 (with ``auto`` or ``int64``), and
    blanks around a key are dropped. Elsewhere the column's own type counts.

    Raises
    ------
    DataError
        A key is null or empty, or the column holds neither integers nor strings.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        index = pc.index(array.is_null(), True).as_py()
        raise part.row_error(first_row + index, f"'{column}' must not be null")
    if part.is_text and key_type != "string":
        integers, wrong = _parse_integers(array)
        if wrong < 0:
            return integers
        if key_type == "int64":
            got = array[wrong].as_py()
            raise part.row_error(first_row + wrong, f"'{column}' must be an integer (got {got!r})")
    if pa.types.is_integer(array.type):
        return _typed_integers(array, part, first_row, column, key_type)
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise DataError(f"{part.name}: column '{column}' must hold integers or strings (got {array.type})")
    if key_type == "int64":
        raise DataError(f"{part.name}: column '{column}' must hold integers (got {array.type})")
    return _strings(array, part, first_row, column)


def _parse_integers(array: pa.Array) -> tuple[pa.Array, int]:
    """Integers of a string array and the first row that is none, or -1."""
    _, offsets, text = array.buffers()
    bounds = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    integers = np.empty(len(array), np.int64)
    characters = np.zeros(0, np.uint8) if text is None else np.frombuffer(text, np.uint8)
    wrong = parse_decimals(bounds, characters, integers)
    return pa.array(integers), int(wrong)


def _typed_integers(array: pa.Array, part: Part, first_row: int, column: str, key_type: KeyType) -> pa.Array:
    try:
        integers = array.cast(pa.int64())
    except pa.ArrowInvalid:
        index = pc.index(pc.greater(array, pa.scalar((1 << 63) - 1, array.type)), True).as_py()
        got = array[index].as_py()
        raise part.row_error(first_row + index, f"'{column}' must be below 2**63 (got {got})") from None
    return integers.cast(pa.large_string()) if key_type == "string" else integers


def _strings(array: pa.Array, part: Part, first_row: int, column: str) -> pa.Array:
    strings = array.cast(pa.large_string())
    if part.is_text:
        strings = pc.ascii_trim_whitespace(strings)
    empty = pc.index(pc.binary_length(strings), pa.scalar(0, pa.int64())).as_py()
    if empty >= 0:
        raise part.row_error(first_row + empty, f"'{column}' must not be empty")
    return strings


def _read_weights(array: pa.Array, part: Part, first_row: int, column: str) -> npt.NDArray[np.float64]:
    """Check weights and give them as float64."""
    numbers = array
    if part.is_text:
        numbers = pc.ascii_trim_whitespace(array)
    elif not (
        pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type)
    ):
        raise DataError(f"{part.name}: column '{column}' must hold numbers (got {array.type})")
    wrong = _first_not_number(numbers)
    if wrong is None:
        weights: npt.NDArray[np.float64] = numbers.cast(pa.float64(), safe=False).to_numpy(
            zero_copy_only=False
        )
        bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
        if not len(bad):
            return weights
        wrong = int(bad[0])
    got = array[wrong].as_py()
    raise part.row_error(first_row + wrong, f"'{column}' must be positive and finite (got {got!r})")


def _first_not_number(array: pa.Array) -> int | None:
    """First row that cannot be a float64, found by halving."""
    if array.null_count:
        return int(pc.index(array.is_null(), True).as_py())
    low, high = 0, len(array)
    if _are_numbers(array):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _are_numbers(array[low:middle]) else (low, middle)
    return low


def _are_numbers(array: pa.Array) -> bool:
    try:
        array.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid:
        return False
    return True


def _edge_columns(part: Part, source: EdgeInput) -> tuple[int, ...]:
    if source.src is not None and source.dst is not None:
        pair = (_find(part, source.src, "src"), _find(part, source.dst, "dst"))
    else:
        pair = _usual_pair(part)
    if not source.weighted:
        return pair
    if source.weight is not None:
        return (*pair, _find(part, source.weight, "weight"))
    if part.named:
        weight = _usual_column(part, (_USUAL_WEIGHT,))
        return pair if weight is None or weight in pair else (*pair, weight)
    return (*pair, 2) if pair == (0, 1) and len(part.columns) > 2 else pair


def _usual_pair(part: Part) -> tuple[int, int]:
    if not part.named:
        if len(part.columns) < 2:
            raise DataError(f"{part.name}: must have at least 2 columns (got 1); is the delimiter right?")
        return 0, 1
    for src, dst, _, _ in _USUAL_PAIRS:
        pair = _usual_column(part, (src,)), _usual_column(part, (dst,))
        if pair[0] is not None and pair[1] is not None:
            return pair[0], pair[1]
    raise MissingDataError(
        f"{part.name}: no columns with usual names (src and dst, user and item, …); "
        f"name two of {', '.join(part.columns)}"
    )


def _usual_kinds(part: Part, columns: tuple[int, ...]) -> tuple[str, str]:
    names = tuple(simplified(part.columns[column]) for column in columns[:2])
    kinds = {pair[:2]: pair[2:] for pair in _USUAL_PAIRS}
    return kinds.get((names[0], names[1]), ("node", "node"))


def _node_columns(part: Part, source: NodeInput) -> tuple[int, ...]:
    if source.key is not None:
        key = _find(part, source.key, "key")
    else:
        usual = _usual_column(part, _USUAL_KEYS) if part.named else None
        key = 0 if usual is None else usual
    if source.kind is not None:
        return (key,)
    if source.kind_column is not None:
        return key, _find(part, source.kind_column, "kind_column")
    if part.named:
        kind = _usual_column(part, (_USUAL_KIND,))
    else:
        kind = 1 if source.key is None and len(part.columns) > 1 else None
    return (key,) if kind is None or kind == key else (key, kind)


def _usual_column(part: Part, usual: tuple[str, ...]) -> int | None:
    names = [simplified(name) for name in part.columns]
    return next((names.index(name) for name in usual if name in names), None)


def _find(part: Part, column: str | int, option: str) -> int:
    if isinstance(column, str) and part.named and column in part.columns:
        return part.columns.index(column)
    if isinstance(column, int) and 0 <= column < len(part.columns):
        return column
    there = ", ".join(part.columns) if part.named else f"{len(part.columns)} without names"
    raise MissingDataError(f"{part.name}: column {column!r} for '{option}' is missing; there are: {there}")


def _given(*columns: str | int | None) -> frozenset[str]:
    return frozenset(simplified(column) for column in columns if isinstance(column, str))
