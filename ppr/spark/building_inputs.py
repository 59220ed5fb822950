"""The first stage of a graph built on Spark: the inputs, read and checked by the workers, in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import array, col, create_map, element_at, lit

from ppr import errors
from ppr.inputs import EdgeTable, KeyType, NodeList
from ppr.lineage import number_kinds
from ppr.readers import Table
from ppr.readers.part import ArrowPart, ParquetPart, Part
from ppr.request import refuse_empty
from ppr.spark.building_reading import Piece, ReadPieces
from ppr.urls import file_url

_PIECE_ROWS = 1 << 21
_COLUMNS = {
    "edges": {"table": "int", "src": "key", "dst": "key", "weight": "double"},
    "nodes": {"kind": "string", "key": "key"},
}
_FORMS = {"integers": "bigint", "strings": "string"}


def plan_reading(
    tables: Sequence[EdgeTable | NodeList], key_type: KeyType, folder: Path, *, piece_rows: int = _PIECE_ROWS
) -> ReadPieces:
    """Cut tables into what one task reads, and make the folders for the result.

    Parameters
    ----------
    tables
        The tables, those of edges first.
    key_type
        As for the local builder.
    folder
        Where the rows go.
    piece_rows
        Rows of a task at least, in a Parquet file; another file is one task.
    """
    for what in _COLUMNS:
        for form in _FORMS:
            (folder / f"{what}-{form}").mkdir(parents=True)
    pieces = [
        Piece(number, piece)
        for number, table in enumerate(tables)
        for piece in _cut(table, folder / f"table-{number}", piece_rows)
    ]
    weighted = any(isinstance(table, EdgeTable) and table.weighted for table in tables)
    return ReadPieces(tuple(pieces), key_type, weighted, str(folder))


def _cut(source: EdgeTable | NodeList, folder: Path, piece_rows: int) -> list[EdgeTable | NodeList]:
    found: list[EdgeTable | NodeList] = []
    for number, (part, columns) in enumerate(zip(source.table.parts, source.columns, strict=True)):
        if isinstance(part, ArrowPart):
            part, columns = _on_disk(part, columns, folder, number), tuple(range(len(columns)))
        for piece in part.pieces(piece_rows):
            table = Table(source.table.name, (piece,))
            if isinstance(source, NodeList):
                found.append(NodeList(table, (columns,), source.kind))
            else:
                found.append(EdgeTable(table, (columns,), source.src_kind, source.dst_kind, source.directed))
    return found


def _on_disk(part: ArrowPart, columns: Sequence[int], folder: Path, number: int) -> Part:
    """The columns of a table in memory, where workers can read them."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}.parquet"
    pq.write_table(part.select(columns), path, row_group_size=_PIECE_ROWS)
    return ParquetPart(path, part.name)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows that have been read, as Spark sees them.

    Parameters
    ----------
    folder
        Where they lie.
    tables
        The tables that they are of.
    places
        Folders with rows.
    kinds
        Node kinds, in the order of their ids.
    as_strings
        Whether the keys are strings.
    weighted
        Whether edges have a column of weights.
    n_edges, n_nodes
        Rows of edge tables and of node lists.
    """

    folder: Path
    tables: Sequence[EdgeTable | NodeList]
    places: frozenset[str]
    kinds: tuple[str, ...]
    as_strings: bool
    weighted: bool
    n_edges: int
    n_nodes: int

    @classmethod
    def of(
        cls,
        task: ReadPieces,
        tables: Sequence[EdgeTable | NodeList],
        receipts: Sequence[dict[str, Any]],
        old_kinds: tuple[str, ...] = (),
    ) -> ReadRows:
        """Rows from the receipts of the pieces, in their order; ids of kinds go on from ``old_kinds``.

        Raises
        ------
        DataError
            The error that the local builder would have met first.
        """
        rows = [0] * len(tables)
        kinds: set[str] = set()
        for piece, receipt in zip(task.pieces, receipts, strict=True):
            rows[piece.table] += receipt["rows"]
            kinds.update(receipt["kinds"])
        for number, table in enumerate(tables):
            mine = [r for p, r in zip(task.pieces, receipts, strict=True) if p.table == number and r["error"]]
            _refuse([receipt for receipt in mine if receipt["in_keys"]])
            if not mine:
                refuse_empty(table, rows[number])
            if isinstance(table, EdgeTable):
                kinds |= {table.src_kind, table.dst_kind}
        all_kinds = number_kinds(kinds, old_kinds)
        _refuse([receipt for receipt in receipts if receipt["error"]])
        places = frozenset(name.partition("/")[0] for receipt in receipts for name in receipt["files"])
        of_edges = [isinstance(table, EdgeTable) for table in tables]
        return cls(
            folder=Path(task.folder),
            tables=tables,
            places=places,
            kinds=all_kinds,
            as_strings=task.key_type == "string" or any(place.endswith("-strings") for place in places),
            weighted=task.weighted,
            n_edges=sum(n for n, edges in zip(rows, of_edges, strict=True) if edges),
            n_nodes=sum(n for n, edges in zip(rows, of_edges, strict=True) if not edges),
        )

    @property
    def key_type(self) -> str:
        """Spark's type of the keys."""
        return _FORMS["strings" if self.as_strings else "integers"]

    def edges(self, spark: SparkSession) -> DataFrame | None:
        """Edges: ``table``, ``src``, ``dst`` and perhaps ``weight``; None where there are none."""
        return self._rows(spark, "edges")

    def keys(self, spark: SparkSession) -> DataFrame:
        """All keys that are named, once each: ``kind`` (its id) and ``key``."""
        found: list[DataFrame] = []
        if (edges := self.edges(spark)) is not None:
            ends = {end: self.kind_of_end(end).alias("kind") for end in ("src", "dst")}
            found += [edges.select(kind, col(end).alias("key")) for end, kind in ends.items()]
        if (nodes := self._rows(spark, "nodes")) is not None:
            found.append(nodes.select(self.kind_ids(col("kind")).alias("kind"), "key"))
        keys = found[0]
        for more in found[1:]:
            keys = keys.unionAll(more)
        return keys.distinct()

    def kind_ids(self, names: Column) -> Column:
        """Ids of kinds that are given by name."""
        ids = [lit(value) for kind in enumerate(self.kinds) for value in reversed(kind)]
        return create_map(*ids)[names]

    def kind_of_end(self, end: str) -> Column:
        """Kind id of the source or destination of an edge, by its table."""
        return self.by_table([self.kinds.index(getattr(table, f"{end}_kind")) for table in self._edge_tables])

    @property
    def both_ways(self) -> Column:
        """Whether an edge stands for its opposite as well, by its table."""
        return self.by_table([not table.directed for table in self._edge_tables])

    def by_table(self, values: Sequence[Any]) -> Column:
        """A value for each edge table."""
        if len(set(values)) == 1:
            return lit(values[0])
        return element_at(array(*map(lit, values)), col("table") + 1)

    @property
    def _edge_tables(self) -> list[EdgeTable]:
        return [table for table in self.tables if isinstance(table, EdgeTable)]

    def _rows(self, spark: SparkSession, what: str) -> DataFrame | None:
        columns = {name: kind for name, kind in _COLUMNS[what].items() if self.weighted or name != "weight"}
        found = None
        for form, spark_type in _FORMS.items():
            if (place := f"{what}-{form}") not in self.places:
                continue
            types = {name: spark_type if kind == "key" else kind for name, kind in columns.items()}
            rows = spark.read.schema(_ddl(types)).parquet(file_url(self.folder / place))
            rows = rows.select(
                *(
                    col(name).cast(self.key_type).alias(name) if kind == "key" else col(name)
                    for name, kind in columns.items()
                )
            )
            found = rows if found is None else found.unionAll(rows)
        return found


def _refuse(receipts: Sequence[dict[str, Any]]) -> None:
    """Raise the error of the first receipt, if there is one."""
    for receipt in receipts:
        name, message = receipt["error"]
        raise getattr(errors, name)(message)


def _ddl(types: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())
