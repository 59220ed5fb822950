"""A graph in a Spark program, a GraphFrame, as tables of edges and nodes.

Whatever has the attributes ``vertices`` and ``edges``, both Spark DataFrames, is taken for one; neither
pyspark nor graphframes is imported. Vertices have a column ``id`` and perhaps ``kind``, edges have ``src``
and ``dst`` and perhaps ``weight``; case and punctuation of these names do not matter. Ids are distinct over
all kinds. Executors write what is needed, once, and the kinds of an edge's ends come from the vertices by a
join of Spark's: no row passes through the driver.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ppr.errors import DataError, MissingDataError, ParameterError
from ppr.inputs import EdgeInput, EdgeTable, NodeList
from ppr.readers import Table, is_data_frame, simplified, write_data_frame
from ppr.readers.part import ParquetPart
from ppr.urls import file_url

_NEEDED = ("id", "src", "dst")
_NODE = "node"  # kind of all vertices of a table without a column of kinds
_INTEGERS = frozenset({"tinyint", "smallint", "int", "bigint"})
_STRING = re.compile(r"string( collate .+)?|(var)?char\(\d+\)")
_NUMBER = re.compile(r"tinyint|smallint|int|bigint|float|double|decimal\(.+\)")
# Edges that break a rule go to a folder of their own, which is not there if none does.
_BROKEN = "__HIVE_DEFAULT_PARTITION__"


def is_graph_frame(data: Any) -> bool:
    """Whether ``data`` is a GraphFrame, or looks like one."""
    return is_data_frame(getattr(data, "vertices", None)) and is_data_frame(getattr(data, "edges", None))


def open_graph_frame(source: EdgeInput, name: str, staging: Path) -> tuple[list[EdgeTable], NodeList]:
    """Tables of the edges of a GraphFrame, one for each pair of kinds, and of all its vertices.

    Parameters
    ----------
    source
        Input whose ``data`` is a GraphFrame.
    name
        What messages call it.
    staging
        Folder that driver and executors share.

    Raises
    ------
    ParameterError
        The input names columns or kinds, which a GraphFrame has of its own.
    MissingDataError
        A column is missing.
    DataError
        A column has the wrong type, an id is null, empty, or twice among the vertices, a kind is null or
        empty, a weight is not positive and finite, or an edge names a vertex that is not there.
    """
    for option in ("src", "dst", "src_kind", "dst_kind"):
        if (given := getattr(source, option)) is not None:
            raise ParameterError(
                f"'{option}' must not be given with a GraphFrame, whose edges have 'src' and 'dst' and whose "
                f"vertices may have 'kind' (got {given!r})"
            )
    vertices, edges = source.data.vertices, source.data.edges
    columns = _columns(name, source, vertices.columns, edges.columns)
    _check_types(name, vertices, edges, columns)
    kind = f"cast({_quoted(columns['kind'])} as string)" if "kind" in columns else f"'{_NODE}'"
    rows = vertices.selectExpr(f"{_quoted(columns['id'])} as id", f"{kind} as kind")
    files = write_data_frame(rows, staging / "vertices")
    written = vertices.sparkSession.read.parquet(file_url((staging / "vertices").resolve()))
    _check_vertices(name, written)
    parts = tuple(ParquetPart(file, f"{name}: vertices") for file in files)
    nodes = NodeList(Table(f"{name}: vertices", parts), ((0, 1),) * len(parts), _NODE)
    _write_edges(edges, columns, written, staging / "edges")
    return _edge_tables(source, name, staging / "edges", columns.get("weight")), nodes


def _columns(name: str, source: EdgeInput, of_vertices: list[str], of_edges: list[str]) -> dict[str, str]:
    """Names of the columns that are read, by ``id``, ``src``, ``dst`` and perhaps ``kind`` and ``weight``."""
    wanted = {"id": of_vertices, "src": of_edges, "dst": of_edges, "kind": of_vertices, "weight": of_edges}
    found = {
        usual: next((column for column in columns if simplified(column) == usual), None)
        for usual, columns in wanted.items()
    }
    if not source.weighted:
        found["weight"] = None
    elif isinstance(source.weight, str):
        found["weight"] = source.weight
    elif source.weight is not None:
        raise ParameterError(f"'weight' must name a column of a GraphFrame (got {source.weight!r})")
    for usual, columns in wanted.items():
        column = usual if found[usual] is None and usual in _NEEDED else found[usual]
        if column is not None and column not in columns:
            what = "vertices" if columns is of_vertices else "edges"
            raise MissingDataError(
                f"{name}: {what}: column '{column}' is missing; there are: {', '.join(columns)}"
            )
    return {usual: column for usual, column in found.items() if column is not None}


def _quoted(column: str) -> str:
    return f"`{column.replace('`', '``')}`"


def _check_types(name: str, vertices: Any, edges: Any, columns: dict[str, str]) -> None:
    """Refuse columns that are twice, or of a type that is no key, kind or weight."""
    keys: dict[str, str] = {}
    for what, frame, usual in (
        ("vertices", vertices, ("id", "kind")),
        ("edges", edges, ("src", "dst", "weight")),
    ):
        types, counts = dict(frame.dtypes), Counter(map(str.lower, frame.columns))
        for each, column in ((each, columns[each]) for each in usual if each in columns):
            if counts[column.lower()] > 1:  # to Spark, whatever its case
                raise DataError(f"{name}: {what}: column names must be distinct (got {column!r} twice)")
            where, found = f"{what}: column '{column}'", types[column]
            if each == "kind":
                if not _STRING.fullmatch(found):
                    raise DataError(f"{name}: {where} must hold strings (got {found})")
            elif each == "weight":
                if not _NUMBER.fullmatch(found):
                    raise DataError(f"{name}: {where} must hold numbers (got {found})")
            else:
                keys[where] = found
    forms = {}
    for where, found in keys.items():
        if found not in _INTEGERS and not _STRING.fullmatch(found):
            raise DataError(f"{name}: {where} must hold integers or strings (got {found})")
        forms[where] = found in _INTEGERS
    # Spark would compare them, by turning strings into numbers.
    if len(set(forms.values())) > 1:
        raise DataError(
            f"{name}: ids must be integers everywhere or strings everywhere "
            f"(got {', '.join(f'{found} in {where}' for where, found in keys.items())})"
        )


def _check_vertices(name: str, vertices: Any) -> None:
    """Refuse vertices without an id or kind, and an id that is there twice."""
    empty = "cast(id as string) = ''"
    bad = vertices.where(f"id is null or kind is null or kind = '' or {empty}").limit(1).collect()
    if bad:
        column = "id" if bad[0]["id"] in (None, "") else "kind"
        what = "null" if bad[0][column] is None else "empty"
        of = f" (vertex {bad[0]['id']!r})" if column == "kind" else ""
        raise DataError(f"{name}: vertices: '{column}' must not be {what}{of}")
    twice = vertices.groupBy("id").count().where("count > 1").limit(1).collect()
    if twice:
        raise DataError(
            f"{name}: vertices: 'id' must be distinct (got {twice[0]['id']!r} {twice[0]['count']} times)"
        )


def _write_edges(edges: Any, columns: dict[str, str], vertices: Any, folder: Path) -> None:
    """Write the edges with the kinds of their ends, in a folder for each pair of kinds.

    The folders are called by digests, as kinds may hold any character.
    """
    named = [f"{_quoted(columns[name])} as {name}" for name in ("src", "dst", "weight") if name in columns]
    kinds = [vertices.selectExpr(f"id as {end}", f"kind as {end}_kind") for end in ("src", "dst")]
    joined = edges.selectExpr(*named).join(kinds[0], "src", "left").join(kinds[1], "dst", "left")
    # No NaN, no null.
    good = "weight > 0 and weight < double('Infinity')" if "weight" in columns else "true"
    joined = joined.selectExpr("*", f"if({good}, md5(concat(md5(src_kind), md5(dst_kind))), null) as pair")
    write_data_frame(joined, folder, by="pair")


def _edge_tables(source: EdgeInput, name: str, folder: Path, weight: str | None) -> list[EdgeTable]:
    if (broken := folder / f"pair={_BROKEN}").is_dir():
        raise _broken_edge(name, _first_row(broken), weight)
    tables = []
    for pair in sorted(folder.glob("pair=*")):
        kinds = _first_row(pair)
        src_kind, dst_kind = kinds["src_kind"], kinds["dst_kind"]
        parts = tuple(ParquetPart(file, f"{name}: edges") for file in sorted(pair.glob("*.parquet")))
        names = ("src", "dst") if weight is None else ("src", "dst", "weight")
        columns = tuple(tuple(part.columns.index(column) for column in names) for part in parts)
        directed = src_kind == dst_kind if source.directed is None else source.directed
        tables.append(EdgeTable(Table(f"{name}: edges", parts), columns, src_kind, dst_kind, directed))
    return tables


def _first_row(folder: Path) -> dict[str, Any]:
    """A row of a folder that has some."""
    for file in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(file) as rows:
            for batch in rows.iter_batches(batch_size=1):
                row: dict[str, Any] = pa.Table.from_batches([batch]).to_pylist()[0]
                return row
    raise AssertionError(folder)


def _broken_edge(name: str, edge: dict[str, Any], weight: str | None) -> DataError:
    for end in ("src", "dst"):
        if edge[end] is None:
            return DataError(f"{name}: edges: '{end}' must not be null")
    for end in ("src", "dst"):
        if edge[f"{end}_kind"] is None:
            return DataError(f"{name}: edges: '{end}' must be the id of a vertex (got {edge[end]!r})")
    got = f"got {edge['weight']!r} from {edge['src']!r} to {edge['dst']!r}"
    return DataError(f"{name}: edges: '{weight}' must be positive and finite ({got})")
