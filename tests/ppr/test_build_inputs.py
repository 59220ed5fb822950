"""How inputs are recognised, and the stated policies."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from ppr.build import build_graph
from ppr.errors import OutputExistsError, ParameterError
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def edges_of(graph: Graph) -> set[tuple[Any, ...]]:
    """Edges by key, with the kind where there are several, and the recovered weight."""

    def name(node: int) -> Any:
        key = graph.keys([node])[0]
        return key if len(graph.kinds) == 1 else f"{graph.kinds[graph.kind_ids[node]]}:{key}"

    weights = graph.weights()
    sources = np.repeat(np.arange(graph.n_nodes), graph.out_degree)
    return {(name(s), name(d), round(w, 6)) for s, d, w in zip(sources, graph.indices, weights, strict=True)}


def build_text(tmp_path: Path, text: str, **options: Any) -> Graph:
    path = tmp_path / "edges.txt"
    path.write_bytes(text.encode())
    return build_graph(EdgeInput(path, **options), tmp_path / "graph")


@pytest.mark.parametrize(
    "text",
    [
        "1 2\n3 4\n",
        "1,2\r\n3,4\r\n",
        "1;2\n3;4",
        "# comment\n#\n1|2\n\n3|4\n",
        "\ufeff1\t2\n3\t4\n",
        "1,2\r3,4\r",
        "# note\rsrc,dst\r1,2\r\n3,4\n",
        "src,dst\n1,2\n3,4\n",
        "# note\nSource\tTarget\n1\t2\n3\t4\n",
        "when,dst,src\nx,2,1\ny,4,3\n",
        "\ufefffrom, to\n 1, 2\n 3 ,\t4\n",
        '"src","dst"\n"1","2"\n"3","4"\n',
    ],
)
def test_text_layouts(tmp_path: Path, text: str) -> None:
    graph = build_text(tmp_path, text)
    assert edges_of(graph) == {(1, 2, 1.0), (3, 4, 1.0)}
    assert graph.directed


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("user,item,weight\n1,1,2\n2,1,3\n", {}),
        ("user_id,item_id,weight,timestamp\n1,1,2,9\n2,1,3,9\n", {}),
        ("itemId\tuserId\tWeight\n1\t1\t2\n1\t2\t3\n", {}),
        ("1 1 2\n2 1 3\n", {"src_kind": "user", "dst_kind": "item"}),
        ("9,1,1,2\n9,2,1,3\n", {"src": 1, "dst": 2, "weight": 3, "src_kind": "user", "dst_kind": "item"}),
        (
            "who,what,stars\n1,1,2\n2,1,3\n",
            {"src": "who", "dst": "what", "weight": "stars", "src_kind": "user", "dst_kind": "item"},
        ),
    ],
)
def test_interactions_are_undirected_between_two_kinds(tmp_path: Path, text: str, options: Any) -> None:
    graph = build_text(tmp_path, text, **options)
    assert graph.kinds == ("item", "user")
    assert not graph.directed
    forward = {("user:1", "item:1", 2.0), ("user:2", "item:1", 3.0)}
    assert edges_of(graph) == forward | {(dst, src, weight) for src, dst, weight in forward}


def test_weights_can_be_ignored(tmp_path: Path) -> None:
    graph = build_text(tmp_path, "1 2 881250949\n3 4 -1\n", weighted=False)
    assert edges_of(graph) == {(1, 2, 1.0), (3, 4, 1.0)}
    assert not graph.weighted


def test_only_plain_decimals_are_integer_keys(tmp_path: Path) -> None:
    assert build_text(tmp_path, "1,2\n-3,0\n").manifest["key_type"] == "int64"
    for i, odd in enumerate(["007", "+1", "1.0", "0x1f", "-0", "9223372036854775808", "1e3", "-"]):
        path = tmp_path / f"odd-{i}.csv"
        path.write_text(f"1,2\n{odd},2\n")
        graph = build_graph(path, tmp_path / f"odd-{i}")
        assert set(graph.keys(np.arange(3)).tolist()) == {"1", "2", odd}


def test_several_inputs_share_their_nodes(tmp_path: Path) -> None:
    clicks = pa.table({"user": ["ann", "bob"], "item": ["pie", "pie"]})
    choices = pa.table({"user": ["ann"], "llm": ["small"], "weight": [2.5]})
    catalogue = NodeInput(pa.table({"key": ["pie", "tea"]}), kind="item")
    people = NodeInput(pa.table({"key": ["cyd", "large"], "kind": ["user", "llm"]}))
    graph = build_graph(
        [EdgeInput(clicks), EdgeInput(choices)], tmp_path / "graph", nodes=[catalogue, people]
    )
    assert graph.kinds == ("item", "llm", "user")
    names = {kind: graph.keys(graph.nodes_of_kind(kind)).tolist() for kind in graph.kinds}
    assert names == {"item": ["pie", "tea"], "llm": ["large", "small"], "user": ["ann", "bob", "cyd"]}
    assert ("user:ann", "llm:small", 2.5) in edges_of(graph)
    assert graph.manifest["counts"]["dangling"] == 3  # tea, cyd, large
    assert graph.manifest["nodes_per_kind"] == {"item": 2, "llm": 2, "user": 3}


@pytest.mark.parametrize(
    "text", ["New York\nOld York\n", "key\nNew York\nOld York\n", "Old York,9\nNew York,8\n"]
)
def test_node_lists_may_hold_names_with_blanks(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cities.txt"
    path.write_text(text)
    graph = build_graph([], tmp_path / "graph", nodes=NodeInput(path, kind="city"))
    assert graph.keys(graph.nodes_of_kind("city")).tolist() == ["New York", "Old York"]


@pytest.mark.parametrize("header", ["", "key,kind\n", "Kind,Node\n"])
def test_node_lists_may_hold_kinds(tmp_path: Path, header: str) -> None:
    path = tmp_path / "nodes.csv"
    rows = ["z,node", "q,item"]
    if header.startswith("Kind"):
        rows = ["node,z", "item,q"]
    path.write_text(header + "\n".join(rows))
    graph = build_graph([], tmp_path / "graph", nodes=NodeInput(path))
    assert {kind: graph.keys(graph.nodes_of_kind(kind)).tolist() for kind in graph.kinds} == {
        "item": ["q"],
        "node": ["z"],
    }


def test_integers_become_decimal_strings_beside_string_keys(tmp_path: Path) -> None:
    table = pa.table({"user": [10, 9], "item": ["x", "10"]})
    graph = build_graph(EdgeInput(table, directed=True), tmp_path / "graph")
    assert edges_of(graph) == {("user:10", "item:x", 1.0), ("user:9", "item:10", 1.0)}
    assert graph.keys(graph.nodes_of_kind("user")).tolist() == ["10", "9"]  # the order of strings


def test_self_loops_are_dropped_or_stored_once(tmp_path: Path) -> None:
    table = pa.table({"src": [1, 2, 1], "dst": [1, 2, 2]})
    dropped = build_graph(EdgeInput(table, directed=False), tmp_path / "dropped")
    assert edges_of(dropped) == {(1, 2, 1.0), (2, 1, 1.0)}
    assert dropped.manifest["counts"]["self_loop_rows"] == 2
    kept = build_graph(EdgeInput(table, directed=False), tmp_path / "kept", self_loops="keep")
    assert edges_of(kept) == {(1, 1, 1.0), (2, 2, 1.0), (1, 2, 1.0), (2, 1, 1.0)}
    only_loops = build_graph(pa.table({"src": [7], "dst": [7]}), tmp_path / "only")
    assert (only_loops.n_nodes, only_loops.n_edges) == (1, 0)


def test_nodes_alone(tmp_path: Path) -> None:
    graph = build_graph([], tmp_path / "graph", nodes=pa.table({"id": [5, 3]}))
    assert graph.keys([0, 1]).tolist() == [3, 5]
    assert Graph.open(tmp_path / "graph").n_edges == 0


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix])
def test_sparse_matrix_files(tmp_path: Path, make: Any) -> None:
    matrix = make(np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.5]]))
    sp.save_npz(tmp_path / "matrix.npz", matrix)
    graph = build_graph(
        EdgeInput(tmp_path / "matrix.npz", src_kind="user", dst_kind="item"), tmp_path / "graph"
    )
    forward = {("user:0", "item:1", 2.0), ("user:1", "item:2", 0.5)}
    assert edges_of(graph) == forward | {(dst, src, weight) for src, dst, weight in forward}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2], pa.uint8()),
        pa.array([1, 2], pa.uint64()),
        pa.array([1, 2]).dictionary_encode(),
        pa.array(["1", "2"]).dictionary_encode(),
        pa.array(["1", "2"], pa.large_string()),
    ],
)
def test_arrow_key_types(tmp_path: Path, column: pa.Array) -> None:
    graph = build_graph(pa.table({"src": column, "dst": column.take(pa.array([1, 0]))}), tmp_path / "graph")
    keys = column.to_pylist()
    assert edges_of(graph) == {(keys[0], keys[1], 1.0), (keys[1], keys[0], 1.0)}


def test_real_files(tmp_path: Path, shared_data: Path) -> None:
    votes = build_graph(shared_data / "graphs" / "wiki-Vote.txt.gz", tmp_path / "votes")
    assert (votes.n_nodes, votes.n_edges, votes.directed) == (7115, 103689, True)
    assert votes.manifest["counts"]["dangling"] == 1005
    matrix = sp.load_npz(shared_data / "gowalla" / "s_adj_mat.npz")
    gowalla = build_graph(shared_data / "gowalla" / "s_adj_mat.npz", tmp_path / "gowalla")
    np.testing.assert_array_equal(gowalla.indptr, matrix.indptr)
    np.testing.assert_array_equal(gowalla.indices, matrix.indices)


def test_finished_output_is_not_built_again(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    path.write_text("1,2\n")
    first = build_graph(path, tmp_path / "graph")
    before = (tmp_path / "graph" / "manifest.json").stat()
    (tmp_path / "moved.csv").write_text("1,2\n")
    stages: list[str] = []
    again = build_graph(
        tmp_path / "moved.csv", tmp_path / "graph", progress=lambda *step: stages.append(step[0])
    )
    assert again.checksum == first.checksum
    assert not stages
    assert (tmp_path / "graph" / "manifest.json").stat().st_mtime_ns == before.st_mtime_ns
    path.write_text("1,3\n")
    with pytest.raises(OutputExistsError, match="exists, made from other input"):
        build_graph(path, tmp_path / "graph")
    with pytest.raises(OutputExistsError, match="self_loops"):
        build_graph(tmp_path / "moved.csv", tmp_path / "graph", self_loops="keep")
    assert Graph.open(tmp_path / "graph").checksum == first.checksum


def test_finished_output_from_memory_is_compared_by_content(tmp_path: Path) -> None:
    table = pa.table({"src": [1, 2], "dst": [2, 3]})
    first = build_graph(table, tmp_path / "graph")
    assert (
        build_graph(iter(table.take(pa.array([1, 0])).to_batches()), tmp_path / "graph").checksum
        == first.checksum
    )
    with pytest.raises(OutputExistsError, match="other data"):
        build_graph(pa.table({"src": [1, 2], "dst": [2, 4]}), tmp_path / "graph")
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_compressed_file_gives_the_same_graph(tmp_path: Path) -> None:
    plain = "".join(f"{i},{i * i % 97}\n" for i in range(1000))
    (tmp_path / "plain.csv").write_text(plain)
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(plain.encode()))
    graphs = [build_graph(tmp_path / name, tmp_path / f"g-{name}") for name in ("plain.csv", "packed.csv.gz")]
    assert graphs[0].checksum == graphs[1].checksum


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"src": "a"}, "'src' and 'dst' must be given together"),
        ({"src": 1, "dst": 1}, "must be different columns"),
        ({"weight": "w", "weighted": False}, "'weight' must not be given"),
        ({"src_kind": ""}, "'src_kind' must not be empty"),
        ({"delimiter": "::"}, r"'delimiter' must be one ASCII character \(got '::'\)"),
    ],
)
def test_contradicting_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        EdgeInput("edges.csv", **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_loops": "twice"}, r"'self_loops' must be drop or keep \(got 'twice'\)"),
        ({"key_type": "float"}, "'key_type' must be auto, int64 or string"),
        ({"bucket_edges": 0}, r"'bucket_edges' must be positive \(got 0\)"),
        ({"inputs": []}, "'inputs' must not be empty"),
        ({"inputs": {"src": [1]}}, r"'data' must be a path, .* \(got dict\)"),
        ({"inputs": 5}, r"'data' must be a path, .* \(got int\)"),
        ({"inputs": [{"src": 1}]}, r"must yield Arrow batches \(got dict\)"),
    ],
)
def test_bad_parameters(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"inputs": pa.table({"src": [1], "dst": [2]}), **options}
    with pytest.raises(ParameterError, match=message):
        build_graph(out=tmp_path / "graph", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.spark
def test_spark_data_frame(tmp_path: Path, spark: SparkSession) -> None:
    rows = [(f"u{i % 7}", f"i{i * i % 11}", 0.5 + i % 3) for i in range(60)]
    frame = spark.createDataFrame(rows, ["user", "item", "weight"]).repartition(3)
    user, item, weight = zip(*rows, strict=True)
    table = pa.table({"user": list(user), "item": list(item), "weight": list(weight)})
    graph = build_graph(frame, tmp_path / "from spark")
    assert graph.checksum == build_graph(table, tmp_path / "from table").checksum
    assert build_graph(frame.repartition(2), tmp_path / "from spark").checksum == graph.checksum
