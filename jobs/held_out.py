"""Held-out interactions, in the forms that test splits come in."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ppr.errors import DataError
from ppr.graph import Graph
from ppr.inputs import EdgeInput, KeyType, open_edges
from ppr.readers.text import numbered_lines

_LISTS = (".txt", ".txt.gz")


@dataclass(frozen=True, slots=True)
class Interactions:
    """Pairs of a user and an item, by their keys: Arrow arrays of the graph's key type."""

    name: str
    users: pa.Array
    items: pa.Array


def read_held_out(path: Path, graph: Graph) -> Interactions:
    """Read a test split.

    Parameters
    ----------
    path
        A table of interactions, as ``build-graph`` takes them; or, when its name ends in ``.txt`` or
        ``.txt.gz``, a line ``user item item ...`` per user, as LightGCN's data sets have.
    graph
        Graph that the keys belong to.

    Raises
    ------
    MissingDataError
        The file is not there, or lacks a column.
    DataError
        The file is empty, or a row is malformed.
    """
    if path.name.endswith(_LISTS):
        return _read_lists(path, graph)
    key_type: KeyType = "int64" if graph.nodes.is_integer else "string"
    with tempfile.TemporaryDirectory(prefix="fairpath-") as staging:
        table = open_edges(EdgeInput(path, weighted=False), str(path), Path(staging) / "table")
        batches = list(table.batches(key_type, weights=False))
    return _interactions(
        path,
        pa.chunked_array([b.src for b in batches], graph.nodes.keys.type),
        pa.chunked_array([b.dst for b in batches], graph.nodes.keys.type),
    )


def _read_lists(path: Path, graph: Graph) -> Interactions:
    users: list[int | str] = []
    items: list[int | str] = []
    for number, line in numbered_lines(path):
        words = line.split()
        try:
            keys = [int(word) for word in words] if graph.nodes.is_integer else words
        except ValueError:
            raise DataError(
                f"{path}: row {number}: keys must be integers in this graph (got {line[:120]!r})"
            ) from None
        users += keys[:1] * (len(keys) - 1)
        items += keys[1:]
    key_type = graph.nodes.keys.type
    return _interactions(path, pa.chunked_array([users], key_type), pa.chunked_array([items], key_type))


def _interactions(path: Path, users: pa.ChunkedArray, items: pa.ChunkedArray) -> Interactions:
    if len(users) == 0:
        raise DataError(f"{path}: empty (no interactions)")
    return Interactions(str(path), users.combine_chunks(), items.combine_chunks())
