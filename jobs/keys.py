"""Node keys as people write them: on the command line and in small files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import ConfigurationError
from ppr.errors import DataError, MissingDataError
from ppr.graph import Graph


def key_of(graph: Graph, text: str) -> int | str:
    """Key of the graph's key type.

    Raises
    ------
    ValueError
        The graph has integer keys and the text is no integer in plain decimal form.
    """
    if not graph.nodes.is_integer:
        return text
    key = int(text)
    if str(key) != text:  # int() takes 1_0, +10 and 010 too
        raise ValueError(f"not in plain decimal form: {text!r}")
    return key


def ids_of(graph: Graph, texts: Sequence[str], kind: str | None) -> npt.NDArray[np.int32]:
    """Dense ids of keys from the command line, int32.

    Raises
    ------
    ConfigurationError
        A key is not of the graph's key type.
    UnknownNodeError
        A key or the kind is not in the graph.
    """
    keys = []
    for text in texts:
        try:
            keys.append(key_of(graph, text))
        except ValueError:
            raise ConfigurationError(f"'key' must be an integer in this graph (got {text!r})") from None
    return graph.ids(keys, kind)


def read_ids(graph: Graph, path: Path, kind: str | None) -> npt.NDArray[np.int32]:
    """Dense ids of the keys in a file, one key a line, in its order, int32.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is empty, not UTF-8, or a line is not a key of the graph's key type.
    UnknownNodeError
        A key or the kind is not in the graph.
    """
    keys = []
    for number, line in _lines(path):
        try:
            keys.append(key_of(graph, line))
        except ValueError:
            raise DataError(
                f"{path}: row {number}: 'key' must be an integer in this graph (got {line!r})"
            ) from None
    return graph.ids(keys, kind)


def find_ids(graph: Graph, keys: pa.Array, kinds: Sequence[str]) -> npt.NDArray[np.int32]:
    """Dense ids of keys of the graph's key type within some kinds, int32, -1 for a key that is not there."""
    ids = np.full(len(keys), -1, dtype=np.int32)
    for kind in kinds:
        nodes = graph.nodes_of_kind(kind)
        there = graph.nodes.keys.take(pa.array(nodes))
        at = pc.fill_null(pc.index_in(keys, value_set=there), -1).to_numpy()
        ids = np.where((ids < 0) & (at >= 0), nodes[at], ids)
    return ids


def parse_edge(text: str) -> tuple[str, float]:
    """Key and weight of ``KEY`` or ``KEY:WEIGHT``; a key that holds colons needs a weight behind it.

    Raises
    ------
    ConfigurationError
        The key is empty, or the weight is not a positive finite number.
    """
    key, colon, weight = text.rpartition(":")
    if not colon:
        key, weight = text, "1"
    if not key or not _is_weight(weight):
        raise ConfigurationError(
            f"'--edge' must be KEY or KEY:WEIGHT with a positive finite weight (got {text!r})"
        )
    return key, float(weight)


def read_edges(path: Path) -> list[tuple[str, float]]:
    """Keys and weights of a file with a line ``key`` or ``key,weight`` per edge.

    A first line that reads ``key,weight`` is a header.

    Raises
    ------
    MissingDataError
        The file is not there.
    DataError
        It is empty, not UTF-8, or a weight is not a positive finite number.
    """
    edges = []
    for at, (number, line) in enumerate(_lines(path)):
        if at == 0 and [field.strip().lower() for field in line.split(",")] == ["key", "weight"]:
            continue
        key, comma, weight = line.rpartition(",")
        if comma and not _is_weight(weight):
            raise DataError(f"{path}: row {number}: 'weight' must be positive and finite (got {weight!r})")
        edges.append((key, float(weight)) if comma else (line, 1.0))
    if not edges:
        raise DataError(f"{path}: must hold at least one edge (it has a header only)")
    return edges


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingDataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from None
    found = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise DataError(f"{path}: must hold at least one line (it is empty)")
    yield from found


def _is_weight(text: str) -> bool:
    try:
        weight = float(text)
    except ValueError:
        return False
    return math.isfinite(weight) and weight > 0
