"""Fingerprints as a graph in Spark: an edge from each source to each node of its row, with the original keys.

The frames are read from the stores' Parquet files when they are used: nothing is written, and no row passes
through the driver. Where keys shall be ids, one job looks at once whether kinds share any. Executors must see
the stores under the same paths as the driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col
from pyspark.sql.functions import max as largest
from pyspark.sql.functions import min as smallest

from ppr.errors import ParameterError, ResourceError
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.nodes import NODE_FILE
from ppr.spark.failures import raise_readable
from ppr.urls import file_url

Ids = Literal["key", "dense"]
_ROW_DDL = "source int, ids array<int>, scores array<float>, mass double"
_INSTALL = (
    "install the Python package graphframes-py, and start Spark with the jar of the same version for its "
    "Spark and Scala (--packages io.graphframes:graphframes-spark4_2.13:VERSION, or the setting spark.jars)"
)


@dataclass(frozen=True, slots=True)
class FingerprintFrames:
    """Vertices and edges of fingerprints. :func:`ppr.build.build_graph` takes it as it takes a GraphFrame.

    Parameters
    ----------
    vertices
        ``id``, ``kind``, and ``mass`` (total estimate of the node's row; null where it has none).
    edges
        ``src``, ``dst``, ``score``, and ``rank`` (from 1, the best).
    """

    vertices: DataFrame
    edges: DataFrame


def fingerprint_frames(
    spark: SparkSession, store: FingerprintStore, graph: Graph, *, ids: Ids = "key"
) -> FingerprintFrames:
    """DataFrames of the vertices and edges of fingerprints, read when they are used.

    Parameters
    ----------
    spark
        Classic or Connect session.
    store
        Fingerprints.
    graph
        Graph that they were computed from.
    ids
        What vertices are known by: ``key``, bigint or string as in the graph; or ``dense``, the graph's int
        ids, and then the vertices have a column ``key`` as well.

    Raises
    ------
    ParameterError
        The graph is in memory only, ``ids`` is neither, or a key that two kinds have should be an id.
    StoreError
        The store was computed from another graph.
    ResourceError
        Spark cannot read the stores.
    """
    if ids not in ("key", "dense"):
        raise ParameterError(f"'ids' must be key or dense (got {ids!r})")
    store.check_graph(graph)
    if graph.path is None:
        raise ParameterError("'graph' must be a store (got a graph in memory): save it first")
    nodes = _live_nodes(spark, graph)
    if ids == "key" and len(graph.kinds) > 1:
        _check_distinct(nodes)
    rows = _read(spark, store.path / "rows", _ROW_DDL)
    columns = ["key as id", "kind", "mass"] if ids == "key" else ["id", "kind", "key", "mass"]
    mass = rows.select(col("source").alias("id"), "mass")
    vertices = nodes.join(mass, "id", "left").selectExpr(*columns)
    entries = rows.selectExpr("source", "posexplode(arrays_zip(ids, scores)) as (place, entry)")
    edges = entries.selectExpr(
        "source as src", "entry.ids as dst", "entry.scores as score", "place + 1 as rank"
    )
    if ids == "key":
        for end in ("src", "dst"):
            edges = edges.join(nodes.selectExpr(f"id as {end}", f"key as {end}_key"), end)
        edges = edges.selectExpr("src_key as src", "dst_key as dst", "score", "rank")
    return FingerprintFrames(vertices, edges)


def fingerprints_graphframe(
    spark: SparkSession, store: FingerprintStore, graph: Graph, *, ids: Ids = "key"
) -> Any:
    """GraphFrame of fingerprints; see :func:`fingerprint_frames` for its columns and what else is raised.

    Raises
    ------
    ResourceError
        GraphFrames is not installed, or Spark was started without its jar.
    """
    try:
        from graphframes import GraphFrame
    except ImportError as error:
        raise ResourceError(f"GraphFrames is not installed ({error}): {_INSTALL}") from error
    frames = fingerprint_frames(spark, store, graph, ids=ids)
    try:
        return GraphFrame(frames.vertices, frames.edges)
    except (PySparkException, Py4JError, TypeError) as error:  # py4j: "'JavaPackage' object is not callable"
        reason = str(error).partition("\n")[0]
        raise ResourceError(f"Spark runs without the jar of GraphFrames ({reason}): {_INSTALL}") from error


def _live_nodes(spark: SparkSession, graph: Graph) -> DataFrame:
    """The node table, without removed nodes."""
    assert graph.path is not None
    key = "bigint" if graph.nodes.is_integer else "string"
    nodes = _read(spark, graph.path / NODE_FILE, f"id int, kind string, key {key}")
    if not graph.removed.size:
        return nodes
    blank = 0 if graph.nodes.is_integer else ""  # the key of removed nodes, and of one node of a kind at most
    live = [graph.nodes.id_of(blank, kind) for kind in graph.kinds]
    return nodes.where((col("key") != blank) | col("id").isin(live))


def _check_distinct(nodes: DataFrame) -> None:
    """Refuse keys as ids of vertices where two kinds share one."""
    shared = nodes.groupBy("key").agg(smallest("kind").alias("one"), largest("kind").alias("other"))
    try:
        found = shared.where("one <> other").limit(1).collect()
    except (PySparkException, Py4JError) as error:
        raise_readable(error)
    if found:
        raise ParameterError(
            f"'ids' must be dense: key {found[0]['key']!r} is in several kinds "
            f"({found[0]['one']}, {found[0]['other']}), and ids of vertices are distinct"
        )


def _read(spark: SparkSession, path: Path, ddl: str) -> DataFrame:
    try:
        return spark.read.schema(ddl).parquet(file_url(path.resolve()))
    except PySparkException as error:
        raise ResourceError(f"{path}: Spark cannot read it ({str(error).partition(chr(10))[0]})") from error
