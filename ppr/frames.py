"""A graph in a Spark program, a GraphFrame, as tables of edges and nodes.

Whatever has the attributes ``vertices`` and ``edges``, both Spark DataFrames, is taken for one; neither
pyspark nor graphframes is imported. Vertices have a column ``id`` and perhaps ``kind``, edges have ``src``
and ``dst`` and perhaps a weight. Ids are distinct over all kinds. Executors write what is needed, once, and
the kinds of an edge's ends come from the vertices by a join of Spark's: no row passes through the driver.
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
from ppr.readers import Table, is_data_frame, write_data_frame
from ppr.readers.part import ParquetPart

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
    weight = _weight_column(source, edges.columns)
    _check_types(name, vertices, edges, weight)
    kind = "cast(kind as string)" if "kind" in vertices.columns else f"'{_NODE}'"
    files = write_data_frame(vertices.selectExpr("id", f"{kind} as kind"), staging / "vertices")
    written = vertices.sparkSession.read.parquet(f"file://{(staging / 'vertices').resolve()}")
    _check_vertices(name, written)
    parts = tuple(ParquetPart(file, f"{name}: vertices") for file in files)
    nodes = NodeList(Table(f"{name}: vertices", parts), ((0, 1),) * len(parts), _NODE)
    _write_edges(edges, weight, written, staging / "edges")
    return _edge_tables(source, name, staging / "edges", weight), nodes


def _weight_column(source: EdgeInput, columns: list[str]) -> str | None:
    """Name of the column of weights, or None where each edge counts 1."""
    if not source.weighted:
        return None
    if source.weight is None:
        return "weight" if "weight" in columns else None
    if isinstance(source.weight, str):
        return source.weight
    raise ParameterError(f"'weight' must name a column of a GraphFrame (got {source.weight!r})")


def _check_types(name: str, vertices: Any, edges: Any, weight: str | None) -> None:
    """Refuse columns that are missing, twice, or of a type that is no key, kind or weight."""
    wanted = {"vertices": ["id"], "edges": ["src", "dst", *([weight] if weight else [])]}
    keys: dict[str, str] = {}
    for what, frame in (("vertices", vertices), ("edges", edges)):
        types = dict(frame.dtypes)
        for column in wanted[what]:
            if column not in types:
                raise MissingDataError(
                    f"{name}: {what}: column '{column}' is missing; there are: {', '.join(frame.columns)}"
                )
        twice = [column for column, count in Counter(frame.columns).items() if count > 1]
        if twice:
            raise DataError(f"{name}: {what}: column names must be distinct (got {twice[0]!r} twice)")
        keys |= {f"{what}: column '{column}'": types[column] for column in wanted[what] if column != weight}
        if what == "vertices" and not _STRING.fullmatch(types.get("kind", "string")):
            raise DataError(f"{name}: vertices: column 'kind' must hold strings (got {types['kind']})")
        if what == "edges" and weight and not _NUMBER.fullmatch(types[weight]):
            raise DataError(f"{name}: edges: column '{weight}' must hold numbers (got {types[weight]})")
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


def _write_edges(edges: Any, weight: str | None, vertices: Any, folder: Path) -> None:
    """Write the edges with the kinds of their ends, in a folder for each pair of kinds.

    The folders are called by digests, as kinds may hold any character.
    """
    columns = ["src", "dst"] if weight is None else ["src", "dst", f"`{weight.replace('`', '``')}` as weight"]
    kinds = [vertices.selectExpr(f"id as {end}", f"kind as {end}_kind") for end in ("src", "dst")]
    joined = edges.selectExpr(*columns).join(kinds[0], "src", "left").join(kinds[1], "dst", "left")
    good = "true" if weight is None else "weight > 0 and weight < double('Infinity')"  # no NaN, no null
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
    if not tables:
        raise DataError(f"{name}: edges: empty (no rows)")
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
