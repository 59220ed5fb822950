"""Tables of changes to a graph, read into memory; each row's place is kept, so that messages can name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ppr.errors import DataError
from ppr.frames import is_graph_frame
from ppr.graph import Graph
from ppr.inputs import EdgeBatch, EdgeInput, EdgeTable, KeyType, NodeInput, open_nodes, read_keys
from ppr.nodes import NodeTable
from ppr.readers import Part, Table
from ppr.request import open_edge_tables

_DST_MASK = (1 << 32) - 1


class Places:
    """Where the rows of several tables stand, in the order in which they were read."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, Part]] = []  # with the number of its first row

    def begin(self, part: Part, first_row: int) -> None:
        """Say that the rows from ``first_row`` on are those of a part."""
        self._parts.append((first_row, part))

    def error(self, row: int, rule: str) -> DataError:
        """Error that names the file and row."""
        first_row, part = self._at(row)
        return part.row_error(row - first_row, rule)

    def name(self, row: int) -> str:
        """File and row."""
        first_row, part = self._at(row)
        return f"{part.name}: row {part.row_number(row - first_row)}"

    def _at(self, row: int) -> tuple[int, Part]:
        return next((first, part) for first, part in reversed(self._parts) if first <= row)


@dataclass(frozen=True, slots=True)
class ReadEdges:
    """Rows of one kind of change to edges, as they were read."""

    batches: Sequence[tuple[EdgeTable, int, EdgeBatch]]  # with the number of the first row
    places: Places
    vertices: Sequence[tuple[str, str, pa.Array]] = ()  # of GraphFrames: name of the table, kind, keys

    @property
    def tables(self) -> list[EdgeTable]:
        """The tables that have rows."""
        return [table for table, _, _ in self.batches]

    def named(self) -> Iterator[tuple[str, pa.Array]]:
        """Pairs of a kind and some of its keys."""
        for table, _, batch in self.batches:
            yield table.src_kind, batch.src
            yield table.dst_kind, batch.dst
        for _, kind, keys in self.vertices:
            yield kind, keys


@dataclass(frozen=True, slots=True)
class ChangedEdges:
    """Edges by their dense ids, in ascending order; those of an undirected table both ways.

    Parameters
    ----------
    keys
        int64 [edges], source << 32 | destination.
    weights
        float64 [edges].
    origins
        int64 [edges], where each comes from: twice the number of the row, as ``places`` knows it, and 1 more
        for the opposite of the edge that the row gives.
    places
        Where the rows stand.
    n_loops
        Number of rows that lead from a node to itself.
    """

    keys: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    origins: npt.NDArray[np.int64]
    places: Places
    n_loops: int

    @property
    def src(self) -> npt.NDArray[np.int64]:
        """Sources, int64 [edges]."""
        return self.keys >> 32

    @property
    def dst(self) -> npt.NDArray[np.int64]:
        """Destinations, int64 [edges]."""
        return self.keys & _DST_MASK

    def first_of(self, wrong: npt.NDArray[np.bool_]) -> int | None:
        """Position of the edge that comes first in the tables among some, or None where there are none."""
        at = np.flatnonzero(wrong)
        return int(at[np.argmin(self.origins[at])]) if len(at) else None

    def error(self, at: int, rule: str) -> DataError:
        """Error that names the file and row of an edge."""
        return self.places.error(int(self.origins[at]) >> 1, rule)

    def place(self, at: int) -> str:
        """File and row of an edge."""
        return self.places.name(int(self.origins[at]) >> 1)


def change_input(source: EdgeInput, graph: Graph) -> EdgeInput:
    """Input whose edges lead both ways where all of the graph's do and nothing else is said."""
    return source if graph.directed or source.directed is not None else replace(source, directed=False)


def read_edges(
    inputs: Sequence[EdgeInput], name: str, graph: Graph, staging: Path, *, weights: bool
) -> ReadEdges:
    """Read all rows of some edge tables, the weights only when asked for; of GraphFrames, the vertices too.

    Raises
    ------
    MissingDataError, DataError
        As for :func:`ppr.build.build_graph`.
    """
    key_type: KeyType = "int64" if graph.nodes.is_integer else "string"
    places, batches, vertices, row = Places(), [], [], 0
    for i, given in enumerate(inputs):
        source = change_input(given, graph)
        if not weights and is_graph_frame(source.data):
            source = replace(source, weight=None, weighted=False)
        tables, lists = open_edge_tables(source, f"{name} {i}", staging / f"{name}-{i}")
        for table in tables:
            for part, columns in zip(table.table.parts, table.columns, strict=True):
                places.begin(part, row)
                of_part = replace(table, table=Table(part.name, (part,)), columns=(columns,))
                for batch in of_part.batches(key_type, weights=weights):
                    batches.append((of_part, row, batch))
                    row += len(batch.src)
        for listed in lists:
            vertices += [(listed.table.name, kind, keys) for kind, keys in listed.batches(key_type)]
    return ReadEdges(batches, places, vertices)


def edges_of(read: ReadEdges, nodes: NodeTable, *, keep_loops: bool) -> ChangedEdges:
    """Translate edges to dense ids; edges from a node to itself are left out, or are one edge each.

    Raises
    ------
    DataError
        A row names a node that is not there.
    """
    keys, weights, origins = [np.empty(0, np.int64)], [np.empty(0)], [np.empty(0, np.int64)]
    n_loops = 0
    for table, first_row, batch in read.batches:
        src = _ids(batch.src, table.src_kind, nodes, read.places, first_row, 0, table)
        dst = _ids(batch.dst, table.dst_kind, nodes, read.places, first_row, 1, table)
        no_loop = src != dst
        n_loops += int(np.count_nonzero(~no_loop))
        weight = np.ones(len(src)) if batch.weight is None else batch.weight
        forward = np.full(len(src), keep_loops) | no_loop
        for opposite, (one, other, chosen) in enumerate([(src, dst, forward), (dst, src, no_loop)]):
            if opposite and table.directed:
                continue
            keys.append((one << 32 | other)[chosen])
            weights.append(weight[chosen])
            origins.append(2 * (first_row + np.flatnonzero(chosen)) + opposite)
    all_keys, all_origins = np.concatenate(keys), np.concatenate(origins)
    order = np.lexsort((all_origins, all_keys))
    return ChangedEdges(
        all_keys[order], np.concatenate(weights)[order], all_origins[order], read.places, n_loops
    )


def read_nodes(inputs: Sequence[NodeInput], name: str, graph: Graph, staging: Path) -> npt.NDArray[np.int32]:
    """Ids of the nodes that some tables list, int32, ascending.

    Raises
    ------
    MissingDataError, DataError
        As for :func:`ppr.build.build_graph`; or a node is not in the graph, is listed twice, or its kind must
        be given.
    """
    key_type: KeyType = "int64" if graph.nodes.is_integer else "string"
    places, row = Places(), 0
    found = [np.empty(0, dtype=np.int32)]
    for i, source in enumerate(inputs):
        listed = open_nodes(source, f"{name} {i}", staging / f"{name}-{i}")
        for part, columns in zip(listed.table.parts, listed.columns, strict=True):
            places.begin(part, row)
            first_row = row
            for arrays in part.read(columns):
                at = row - first_row
                keys = read_keys(arrays[0], part, at, part.columns[columns[0]], key_type)
                if len(arrays) > 1:
                    kinds = read_keys(arrays[1], part, at, part.columns[columns[1]], "string")
                else:
                    kinds = None if source.kind is None else pa.repeat(source.kind, len(keys))
                found.append(_listed(keys, kinds, graph.nodes, places, row))
                row += len(keys)
    ids = np.concatenate(found)
    order = np.argsort(ids, kind="stable")
    twice = order[1:][ids[order[1:]] == ids[order[:-1]]]
    if len(twice):
        raise places.error(int(twice.min()), f"{graph.nodes.name_of(int(ids[twice.min()]))} is listed twice")
    return ids[order]


def _listed(
    keys: pa.Array, kinds: pa.Array | None, nodes: NodeTable, places: Places, first_row: int
) -> npt.NDArray[np.int32]:
    """Ids of listed nodes; those without a kind are looked for in all."""
    ids = np.full(len(keys), -1, dtype=np.int32)
    chosen = None if kinds is None else np.asarray(kinds.to_numpy(zero_copy_only=False), dtype=object)
    for kind in nodes.kinds:
        here = np.arange(len(keys)) if chosen is None else np.flatnonzero(chosen == kind)
        found = nodes.find(keys.take(pa.array(here)), kind)
        twice = here[(ids[here] >= 0) & (found >= 0)]
        if len(twice):
            raise places.error(
                first_row + int(twice[0]),
                f"'kind' must be given: {keys[int(twice[0])].as_py()!r} is in several kinds "
                f"({', '.join(nodes.kinds)})",
            )
        ids[here] = np.where(found >= 0, found, ids[here])
    missing = np.flatnonzero(ids < 0)
    if len(missing):
        at = int(missing[0])
        raise places.error(
            first_row + at, _unknown("node" if chosen is None else chosen[at], keys[at], nodes)
        )
    return ids


def _ids(
    keys: pa.Array, kind: str, nodes: NodeTable, places: Places, first_row: int, column: int, table: EdgeTable
) -> npt.NDArray[np.int64]:
    ids = nodes.find(keys, kind)
    missing = np.flatnonzero(ids < 0)
    if len(missing):
        at = int(missing[0])
        name = table.table.parts[0].columns[table.columns[0][column]]
        raise places.error(first_row + at, f"'{name}': {_unknown(kind, keys[at], nodes)}")
    return ids.astype(np.int64)


def _unknown(kind: str, key: Any, nodes: NodeTable) -> str:
    what = "node" if kind == "node" else f"{kind} node"
    return f"the graph has no {what} {key.as_py()!r} (its kinds are {', '.join(nodes.kinds)})"
