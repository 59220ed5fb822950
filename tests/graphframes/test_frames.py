"""Graphs in Spark, in both directions; the truth is the same graph from Parquet files.

They run on the Spark of the tests with two DataFrames, and on a Spark with GraphFrames with a real one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ppr.build import build_graph
from ppr.errors import (
    DataError,
    MissingDataError,
    OutputExistsError,
    ParameterError,
    PprError,
    ResourceError,
    StoreError,
)
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.readers import open_table
from ppr.spark import compute_fingerprints_spark
from ppr.spark.building import build_graph_spark
from ppr.spark.graphframes import fingerprint_frames, fingerprints_graphframe

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
MakeFrame = Callable[[Any, Any], Any]
PARAMS = FingerprintParams(n_walks=200, top_k=20, seed=5)
KINDS = ("item", "user", "LLM / größe=%")


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table]:
    """Vertices of three kinds, some isolated; weighted edges of all pairs of kinds, duplicates and loops."""
    rng = np.random.default_rng(3)
    n_nodes, n_edges = 120, 900
    keys = rng.permutation(10_000)[:n_nodes] - 40
    kinds = rng.integers(0, 3, n_nodes)
    ends = rng.integers(0, n_nodes - 9, (2, n_edges))
    vertices = pa.table({"id": keys, "kind": [KINDS[kind] for kind in kinds]})
    edges = {"src": keys[ends[0]], "dst": keys[ends[1]], "weight": rng.integers(1, 9, n_edges) / 4}
    return vertices, pa.table(edges)


def as_frame(spark: SparkSession, table: pa.Table, folder: Path) -> Any:
    """A table as a DataFrame of several partitions."""
    path = folder / f"{'-'.join(table.column_names)}.parquet"
    pq.write_table(table, path)
    return spark.read.parquet(f"file://{path}").repartition(3)


def from_parquet(vertices: pa.Table, edges: pa.Table, out: Path, *, weighted: bool = True) -> Graph:
    """The same graph without Spark: a file of edges for each pair of kinds, and a list of nodes."""
    kind_of = dict(zip(vertices["id"].to_pylist(), vertices["kind"].to_pylist(), strict=True))
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for edge in edges.to_pylist():
        pairs.setdefault((kind_of[edge["src"]], kind_of[edge["dst"]]), []).append(edge)
    out.mkdir()
    inputs = []
    for number, (kinds, rows) in enumerate(pairs.items()):
        pq.write_table(pa.Table.from_pylist(rows, edges.schema), path := out / f"{number}.parquet")
        inputs.append(EdgeInput(path, src_kind=kinds[0], dst_kind=kinds[1], weighted=weighted))
    pq.write_table(vertices, path := out / "nodes.parquet")
    return build_graph(inputs, out / "graph", nodes=NodeInput(path))


@pytest.mark.long
@pytest.mark.parametrize("strings", [False, True])
def test_a_graph_frame_gives_the_graph_of_its_files_bit_for_bit(
    spark: SparkSession,
    graph_frame: MakeFrame,
    tables: tuple[pa.Table, pa.Table],
    tmp_path: Path,
    strings: bool,
) -> None:
    vertices, edges = tables
    if strings:
        vertices = vertices.set_column(0, "id", pa.array([f"é{key}" for key in vertices["id"].to_pylist()]))
        for place, end in enumerate(("src", "dst")):
            edges = edges.set_column(place, end, pa.array([f"é{key}" for key in edges[end].to_pylist()]))
    frame = graph_frame(as_frame(spark, vertices, tmp_path), as_frame(spark, edges, tmp_path))

    graph = build_graph(frame, tmp_path / "graph")

    expected = from_parquet(vertices, edges, tmp_path / "files")
    assert graph.checksum == expected.checksum
    assert graph.kinds == expected.kinds == tuple(sorted(KINDS, key=str.encode))
    assert np.count_nonzero(graph.out_degree == 0) >= 9
    again = build_graph(EdgeInput(frame), tmp_path / "graph")
    assert again.checksum == graph.checksum
    with pytest.raises(OutputExistsError, match="was made from other data"):
        build_graph(graph_frame(frame.vertices, frame.edges.limit(50)), tmp_path / "graph")


@pytest.mark.long
def test_spark_builds_the_same_graph_of_it(
    spark: SparkSession, graph_frame: MakeFrame, tables: tuple[pa.Table, pa.Table], tmp_path: Path
) -> None:
    frame = graph_frame(*(as_frame(spark, table, tmp_path) for table in tables))
    before = spark.conf.get("spark.sql.shuffle.partitions")
    graph = build_graph_spark(spark, EdgeInput(frame), tmp_path / "graph", task_edges=200)
    assert graph.checksum == from_parquet(*tables, tmp_path / "files").checksum
    assert spark.conf.get("spark.sql.shuffle.partitions") == before


def test_weights_may_be_ignored_and_edges_may_lead_both_ways(
    spark: SparkSession, graph_frame: MakeFrame, tables: tuple[pa.Table, pa.Table], tmp_path: Path
) -> None:
    vertices, edges = tables
    frame = graph_frame(as_frame(spark, vertices, tmp_path), as_frame(spark, edges, tmp_path))

    plain = build_graph(EdgeInput(frame, weighted=False), tmp_path / "plain")

    assert plain.checksum == from_parquet(vertices, edges, tmp_path / "files", weighted=False).checksum
    undirected = build_graph(EdgeInput(frame, directed=False), tmp_path / "undirected")
    matrix = undirected.transition() != 0
    assert not undirected.directed
    assert (matrix != matrix.T).nnz == 0


def test_vertices_without_kinds_and_a_weight_of_another_name(
    spark: SparkSession, graph_frame: MakeFrame, tmp_path: Path
) -> None:
    vertices = spark.createDataFrame([(5,), (1,), (9,)], "id int")
    edges = spark.createDataFrame([(1, 5, "x", 3), (5, 1, "y", 1), (1, 5, "z", 2)], "src int, dst bigint, "
                                  "type string, `the weight` int")  # fmt: skip

    graph = build_graph(EdgeInput(graph_frame(vertices, edges), weight="the weight"), tmp_path / "graph")

    assert graph.kinds == ("node",)
    assert graph.keys(np.arange(3)).tolist() == [1, 5, 9]
    assert graph.strength.tolist() == [5, 1, 0]
    assert graph.directed


@pytest.mark.parametrize("weighted", [True, False])
def test_case_and_punctuation_of_column_names_do_not_matter(
    spark: SparkSession, tmp_path: Path, weighted: bool
) -> None:
    vertices = pa.table({"id": [1, 2, 3], "kind": ["user", "item", "item"]})
    edges = pa.table({"src": [1, 1, 3], "dst": [2, 3, 2], "weight": [2.0, 5.0, 0.5]})
    expected = from_parquet(vertices, edges, tmp_path / "files", weighted=weighted)
    frames = (
        as_frame(spark, vertices.rename_columns(["ID", "`Kind`"]), tmp_path),
        as_frame(spark, edges.rename_columns(["Src", "DST", "We_ight"]), tmp_path),
    )

    graph = build_graph(EdgeInput(graph_frame_like(*frames), weighted=weighted), tmp_path / "graph")

    assert graph.checksum == expected.checksum
    assert graph.weighted == weighted


def test_columns_that_spark_cannot_tell_apart(spark: SparkSession, tmp_path: Path) -> None:
    edges = spark.createDataFrame(EDGES, E).withColumnRenamed("weight", "SRC")
    with pytest.raises(DataError, match=r"edges: column names must be distinct \(got 'src' twice\)"):
        build_graph(graph_frame_like(spark.createDataFrame(VERTICES, V), edges), tmp_path / "graph")


def test_vertices_without_an_edge_are_a_graph(
    spark: SparkSession, graph_frame: MakeFrame, tmp_path: Path
) -> None:
    frame = graph_frame(spark.createDataFrame(VERTICES, V), spark.createDataFrame([], E))
    nodes = tmp_path / "nodes.csv"
    nodes.write_text("key,kind\n1,user\n2,user\n3,item\n", encoding="utf-8")

    graph = build_graph(frame, tmp_path / "graph")

    assert graph.checksum == build_graph((), tmp_path / "nodes", nodes=NodeInput(nodes)).checksum
    assert build_graph_spark(spark, frame, tmp_path / "spark").checksum == graph.checksum


@pytest.mark.long
def test_paths_are_no_patterns(spark: SparkSession, graph_frame: MakeFrame, tmp_path: Path) -> None:
    folder = tmp_path / "a [b]{c} *?"
    frame = graph_frame(spark.createDataFrame(VERTICES, V), spark.createDataFrame(EDGES, E))

    graph = build_graph(frame, folder / "graph")
    assert build_graph_spark(spark, frame, folder / "spark").checksum == graph.checksum

    frames = fingerprint_frames(spark, compute_fingerprints(graph, folder / "out", PARAMS), graph)
    assert {row.id for row in frames.vertices.collect()} == {1, 2, 3}
    assert {(row.src, row.dst) for row in frames.edges.collect()} >= {(1, 3), (2, 3)}


def test_each_frame_is_computed_once(
    spark: SparkSession, graph_frame: MakeFrame, tables: tuple[pa.Table, pa.Table], tmp_path: Path
) -> None:
    frames = [as_frame(spark, table, tmp_path) for table in tables]
    runs = []

    class Counted:
        def __init__(self, frame: Any) -> None:
            self.frame = frame

        def __getattr__(self, name: str) -> Any:
            if name in ("selectExpr", "join", "collect", "toPandas", "where"):
                runs.append(name)
            return getattr(self.frame, name)

    build_graph(graph_frame_like(*map(Counted, frames)), tmp_path / "graph")

    assert runs == ["selectExpr", "selectExpr"]


def graph_frame_like(vertices: Any, edges: Any) -> Any:
    class Frames:
        pass

    frames = Frames()
    frames.vertices, frames.edges = vertices, edges  # type: ignore[attr-defined]
    return frames


VERTICES = [(1, "user"), (2, "user"), (3, "item")]
EDGES = [(1, 3, 1.0), (2, 3, 2.0)]
V, E = "id bigint, kind string", "src bigint, dst bigint, weight double"


@pytest.mark.parametrize(
    ("vertices", "v_type", "edges", "e_type", "error", "message"),
    [
        (VERTICES, V, [*EDGES, (1, 7, 1.0)], E, DataError, r"'dst' must be the id of a vertex \(got 7\)"),
        (VERTICES, V, [*EDGES, (None, 3, 1.0)], E, DataError, "edges: 'src' must not be null"),
        ([*VERTICES, (None, "user")], V, EDGES, E, DataError, "vertices: 'id' must not be null"),
        ([*VERTICES, (4, None)], V, EDGES, E, DataError, r"vertices: 'kind' must not be null \(vertex 4\)"),
        ([*VERTICES, (3, "user")], V, EDGES, E, DataError, r"'id' must be distinct \(got 3 2 times\)"),
        (VERTICES, V, [*EDGES, (1, 2, -1.0)], E, DataError, r"positive and finite \(got -1.0 from 1 to 2\)"),
        (VERTICES, V, [*EDGES, (1, 2, None)], E, DataError, r"'weight' must be .* \(got None from 1 to 2\)"),
        (VERTICES, V, [*EDGES, (1, 2, float("nan"))], E, DataError, r"\(got nan from 1 to 2\)"),
        ([], V, [], E, DataError, r"input 0: vertices: empty \(no rows\)"),
        (VERTICES, "key bigint, kind string", EDGES, E, MissingDataError,
         "input 0: vertices: column 'id' is missing; there are: key, kind"),
        (VERTICES, V, EDGES, "src bigint, to bigint, weight double", MissingDataError,
         "input 0: edges: column 'dst' is missing; there are: src, to, weight"),
        (VERTICES, V, [("1", 3, 1.0)], "src string, dst bigint, weight double", DataError,
         "integers everywhere or strings everywhere .*string in edges: column 'src'"),
        ([(1.5, "user")], "id double, kind string", EDGES, E, DataError,
         r"vertices: column 'id' must hold integers or strings \(got double\)"),
        ([(1, 2)], "id bigint, kind int", EDGES, E, DataError, r"'kind' must hold strings \(got int\)"),
        (VERTICES, V, [(1, 3, "1")], "src bigint, dst bigint, weight string", DataError,
         r"edges: column 'weight' must hold numbers \(got string\)"),
        ([("a", "user"), ("", "user")], "id string, kind string", [("a", "a", 1.0)],
         "src string, dst string, weight double", DataError, "vertices: 'id' must not be empty"),
    ],
)  # fmt: skip
def test_a_bad_frame_is_refused_and_nothing_is_left(
    spark: SparkSession,
    tmp_path: Path,
    vertices: Any,
    v_type: str,
    edges: Any,
    e_type: str,
    error: type[PprError],
    message: str,
) -> None:
    # Two DataFrames: GraphFrames itself refuses some of these.
    frame = graph_frame_like(spark.createDataFrame(vertices, v_type), spark.createDataFrame(edges, e_type))

    with pytest.raises(error, match=message):
        build_graph(frame, tmp_path / "graph")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"src": "a", "dst": "b"}, "'src' must not be given with a GraphFrame"),
        ({"src_kind": "user"}, "'src_kind' must not be given with a GraphFrame"),
        ({"weight": 2}, r"'weight' must name a column of a GraphFrame \(got 2\)"),
    ],
)
def test_options_that_a_graph_frame_has_no_use_for(
    spark: SparkSession, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    frame = graph_frame_like(spark.createDataFrame(VERTICES, V), spark.createDataFrame(EDGES, E))
    with pytest.raises(ParameterError, match=message):
        build_graph(EdgeInput(frame, **options), tmp_path / "graph")


def test_a_graph_frame_is_no_single_table(spark: SparkSession, tmp_path: Path) -> None:
    frame = graph_frame_like(spark.createDataFrame(VERTICES, V), spark.createDataFrame(EDGES, E))
    with pytest.raises(ParameterError, match="'data' must be a path"):
        open_table(
            frame, "nodes 0", tmp_path / "nodes", delimiters=",", header=None, is_header=lambda names: False
        )


@pytest.fixture(scope="module")
def stores(
    tables: tuple[pa.Table, pa.Table], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Graph, FingerprintStore]:
    folder = tmp_path_factory.mktemp("stores")
    graph = from_parquet(*tables, folder / "files")
    return graph, compute_fingerprints(graph, folder / "fingerprints", PARAMS)


def expected_edges(graph: Graph, store: FingerprintStore) -> set[tuple[Any, Any, float, int]]:
    keys = graph.keys(np.arange(graph.n_nodes)).tolist()
    return {
        (keys[source], keys[node], float(score), rank)
        for source in store.sources.tolist()
        for rank, (node, score) in enumerate(zip(*store.row(source)[:2], strict=True), start=1)
    }


def test_fingerprints_as_frames_are_the_rows_with_their_keys(
    spark: SparkSession, stores: tuple[Graph, FingerprintStore]
) -> None:
    graph, store = stores

    frames = fingerprint_frames(spark, store, graph)

    assert frames.vertices.dtypes == [("id", "bigint"), ("kind", "string"), ("mass", "double")]
    types = [("src", "bigint"), ("dst", "bigint"), ("score", "float"), ("rank", "int")]
    assert frames.edges.dtypes == types
    assert {tuple(row) for row in frames.edges.collect()} == expected_edges(graph, store)
    kinds = [graph.kinds[kind] for kind in graph.kind_ids]
    assert {tuple(row) for row in frames.vertices.collect()} == set(
        zip(graph.keys(np.arange(graph.n_nodes)).tolist(), kinds, store.mass.tolist(), strict=True)
    )


def test_what_comes_back_goes_in_again(
    spark: SparkSession, stores: tuple[Graph, FingerprintStore], tmp_path: Path
) -> None:
    graph, store = stores
    again = build_graph(
        EdgeInput(fingerprint_frames(spark, store, graph), weight="score", directed=True), tmp_path / "again"
    )
    assert again.keys(np.arange(again.n_nodes)).tolist() == graph.keys(np.arange(graph.n_nodes)).tolist()
    assert again.n_edges == sum(src != dst for src, dst, _, _ in expected_edges(graph, store))


def test_some_sources_and_string_keys(spark: SparkSession, tmp_path: Path) -> None:
    edges = pa.table({"user": ["ann", "bob"], "item": ["Tür", "Tor"], "weight": [1.0, 2.0]})
    graph = build_graph(edges, tmp_path / "graph")
    users = graph.nodes_of_kind("user")
    store = compute_fingerprints(graph, tmp_path / "fingerprints", PARAMS, sources=users)

    frames = fingerprint_frames(spark, store, graph)

    assert {tuple(row) for row in frames.edges.collect()} == expected_edges(graph, store)
    mass = {row.id: row.mass for row in frames.vertices.collect()}
    assert mass == {"Tür": None, "Tor": None} | dict(zip(graph.keys(users), store.mass, strict=True))
    assert frames.edges.dtypes[0] == ("src", "string")


def test_keys_that_two_kinds_share_are_no_ids(spark: SparkSession, tmp_path: Path) -> None:
    graph = build_graph(pa.table({"user": [1, 2], "item": [2, 3]}), tmp_path / "graph")
    store = compute_fingerprints(graph, tmp_path / "fingerprints", PARAMS)

    with pytest.raises(
        ParameterError, match=r"'ids' must be dense: key 2 is in several kinds \(item, user\)"
    ):
        fingerprint_frames(spark, store, graph)

    frames = fingerprint_frames(spark, store, graph, ids="dense")
    assert {(row.id, row.kind, row.key) for row in frames.vertices.collect()} == {
        (0, "item", 2), (1, "item", 3), (2, "user", 1), (3, "user", 2),
    }  # fmt: skip
    assert {(row.src, row.dst) for row in frames.edges.collect()} == {
        (source, node) for source in store.sources.tolist() for node in store.row(source)[0].tolist()
    }


def test_removed_nodes_are_not_there(spark: SparkSession, tmp_path: Path) -> None:
    first = build_graph(pa.table({"user": [1, 2], "item": [12, 13]}), tmp_path / "first")
    graph = build_graph(pa.table({"user": [2], "item": [13]}), tmp_path / "graph", previous=first)
    store = compute_fingerprints(graph, tmp_path / "fingerprints", PARAMS)
    assert graph.removed.tolist() == [0, 2]
    for ids, expected in (("key", {13, 2}), ("dense", {1, 3})):
        frames = fingerprint_frames(spark, store, graph, ids=ids)  # type: ignore[arg-type]
        assert {row.id for row in frames.vertices.collect()} == expected
        assert {end for row in frames.edges.collect() for end in (row.src, row.dst)} == expected


@pytest.mark.parametrize(("zero", "one"), [(0, 1), ("0", "1")])
def test_a_removed_node_is_told_from_one_whose_key_is_blank(
    spark: SparkSession, tmp_path: Path, zero: Any, one: Any
) -> None:
    first = build_graph(pa.table({"user": [zero, one], "item": [one, zero]}), tmp_path / "first")
    graph = build_graph(pa.table({"user": [zero], "item": [one]}), tmp_path / "graph", previous=first)
    store = compute_fingerprints(graph, tmp_path / "fingerprints", PARAMS)

    frames = fingerprint_frames(spark, store, graph, ids="dense")

    assert [(row.kind, row.key) for row in frames.vertices.orderBy("id").collect()] == [
        ("item", one), ("user", zero),
    ]  # fmt: skip


def test_what_cannot_be_given_back(
    spark: SparkSession, stores: tuple[Graph, FingerprintStore], tmp_path: Path
) -> None:
    graph, store = stores
    other = build_graph(pa.table({"src": [1], "dst": [2]}), tmp_path / "graph")
    with pytest.raises(StoreError, match="computed from another graph"):
        fingerprint_frames(spark, store, other)
    with pytest.raises(ParameterError, match=r"'ids' must be key or dense \(got 'name'\)"):
        fingerprint_frames(spark, store, graph, ids="name")  # type: ignore[arg-type]
    memory = Graph.from_arrays([0, 1, 2], [1, 0])
    kept = compute_fingerprints(memory, tmp_path / "fingerprints", PARAMS)
    with pytest.raises(ParameterError, match=r"'graph' must be a store"):
        fingerprint_frames(spark, kept, memory)


def test_the_spark_engine_gives_the_same_bits_here(
    spark: SparkSession, stores: tuple[Graph, FingerprintStore], tmp_path: Path
) -> None:
    graph, store = stores
    assert graph.path is not None
    made = compute_fingerprints_spark(spark, graph.path, tmp_path / "out", PARAMS, block_moves=3000)
    assert made.checksum == store.checksum


def test_without_graph_frames_it_is_said_what_to_install(
    spark: SparkSession, stores: tuple[Graph, FingerprintStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, store = stores
    monkeypatch.setitem(sys.modules, "graphframes", None)
    with pytest.raises(ResourceError, match=r"GraphFrames is not installed .* install .* graphframes-py"):
        fingerprints_graphframe(spark, store, graph)
