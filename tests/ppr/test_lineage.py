"""Graphs that come after others: ids go on, removed nodes are gone, against dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppr.build import build_graph
from ppr.errors import DataError, OutputExistsError, ParameterError, StoreError, UnknownNodeError
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput
from ppr.lineage import check_successor
from tests.oracles.naive_graph import NaiveGraph, assert_equal, naive_graph

pytestmark = pytest.mark.usefixtures("quick_disk")

KINDS = st.sampled_from(["node", "user", "item"])
KEYS = {"int64": st.integers(-2, 6), "string": st.sampled_from(["a", "b", "é", "z", "7", "zz"])}


@st.composite
def generations(draw: st.DrawFn) -> list[tuple[list[dict[str, Any]], list[tuple[str, Any]]]]:
    """Tables and listed nodes of some graphs, one after the other."""
    keys = KEYS[draw(st.sampled_from(["int64", "string"]))]
    weights = draw(st.sampled_from([st.just(1.0), st.sampled_from([1.0, 0.3, 2.0])]))
    table = st.fixed_dictionaries(
        {
            "rows": st.lists(st.tuples(keys, keys, weights), min_size=1, max_size=8),
            "src_kind": KINDS,
            "dst_kind": KINDS,
            "directed": st.booleans(),
        }
    )
    listed = st.lists(st.tuples(KINDS, keys), max_size=2)
    one = st.tuples(st.lists(table, min_size=1, max_size=2), listed)
    return draw(st.lists(one, min_size=2, max_size=4))


def inputs_of(tables: list[dict[str, Any]]) -> list[EdgeInput]:
    return [
        EdgeInput(edges(table["rows"]), **{name: value for name, value in table.items() if name != "rows"})
        for table in tables
    ]


def edges(rows: list[tuple[Any, ...]]) -> pa.Table:
    return pa.table(dict(zip(["src", "dst", "weight"], map(list, zip(*rows, strict=True)), strict=False)))


def nodes_of(listed: list[tuple[str, Any]]) -> Any:
    if not listed:
        return ()
    return NodeInput(pa.table({"key": [key for _, key in listed], "kind": [kind for kind, _ in listed]}))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(generations(), st.integers(1, 9), st.data())
def test_every_generation_is_the_naive_builders(
    tmp_path_factory: pytest.TempPathFactory,
    generations: list[tuple[list[dict[str, Any]], list[tuple[str, Any]]]],
    bucket_edges: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("lineage")
    graph: Graph | None = None
    naive: NaiveGraph | None = None
    lineage = []
    for i, (tables, listed) in enumerate(generations):
        naive = naive_graph(tables, listed, previous=naive)
        options: dict[str, Any] = {"nodes": nodes_of(listed), "previous": graph}
        last, graph = (
            graph,
            build_graph(inputs_of(tables), folder / str(i), bucket_edges=bucket_edges, **options),
        )
        assert_equal(graph, naive)
        shuffled = [dict(table, rows=data.draw(st.permutations(table["rows"]))) for table in tables]
        again = build_graph(inputs_of(shuffled[::-1]), folder / f"again-{i}", bucket_edges=2, **options)
        assert again.checksum == graph.checksum
        assert Graph.open(folder / str(i)).checksum == graph.checksum
        assert graph.manifest["parents"] == ({} if last is None else {"graph": last.checksum})
        lineage.append(graph)
        check_lookups(graph, naive)
    for i, old in enumerate(lineage):
        for new in lineage[i:]:
            check_successor(old, new)


def check_lookups(graph: Graph, naive: NaiveGraph) -> None:
    """Every key is found at its id, and a removed one nowhere, in a few and in many keys."""
    where = {node: i for i, node in enumerate(naive.nodes) if node[1] is not None}
    for kind in naive.kinds:
        keys = [key for k, key in where if k == kind]
        wanted = [where[kind, key] for key in keys]
        assert graph.nodes_of_kind(kind).tolist() == sorted(wanted)
        assert graph.ids(keys, kind).tolist() == wanted
        assert graph.ids(keys * 300, kind).tolist() == wanted * 300
        for key in [0, 3, 6] if graph.nodes.is_integer else ["", "a", "zz"]:
            assert graph.nodes.id_of(key, kind) == where.get((kind, key), -1)
    assert graph.manifest["nodes_per_kind"] == {
        kind: sum(k == kind for k, _ in where) for kind in naive.kinds
    }
    assert graph.manifest["counts"].get("removed", 0) == len(naive.removed)
    assert graph.manifest["counts"]["dangling"] == sum(not naive.rows[node] for node in where.values())


def first(tmp_path: Path) -> Graph:
    rows = [("ann", "tea"), ("ann", "rice"), ("bob", "tea"), ("carol", "rice")]
    return build_graph(EdgeInput(edges(rows), src_kind="user", dst_kind="item"), tmp_path / "first")


def second(graph: Graph, out: Path, **options: Any) -> Graph:
    rows = [("ann", "tea"), ("ann", "rice"), ("dan", "tea"), ("carol", "rice"), ("carol", "ale")]
    inputs = EdgeInput(edges(rows), src_kind="user", dst_kind="item")
    return build_graph(inputs, out, previous=graph, **options)


def test_an_erased_key_is_in_no_file(tmp_path: Path) -> None:
    """Neither as text nor as the eight bytes of an integer."""
    old = first(tmp_path)
    new = second(old, tmp_path / "second")
    assert new.nodes.keys.to_pylist() == ["rice", "tea", "ann", "", "carol", "ale", "dan"]
    assert new.removed.tolist() == [3]
    assert_nowhere(b"bob", old, new)

    number = 0x1122334455667788
    olds = build_graph(edges([(1, 2), (number, 1)]), tmp_path / "numbers")
    news = build_graph(edges([(1, 2)]), tmp_path / "later", previous=olds)
    assert news.nodes.keys.to_pylist() == [1, 2, 0]
    assert_nowhere(number.to_bytes(8, "little"), olds, news)


def assert_nowhere(name: bytes, old: Graph, new: Graph) -> None:
    assert old.path is not None
    assert new.path is not None
    assert any(name in file.read_bytes() for file in old.path.iterdir())
    assert not [file for file in new.path.rglob("*") if file.is_file() and name in file.read_bytes()]
    assert name not in pq.read_table(new.path / "nodes.parquet")["key"].to_pylist()


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    """The input and the previous graph are the identity of a store."""
    old = first(tmp_path)
    path = tmp_path / "edges.csv"
    path.write_text("user,item\nann,tea\n")
    out = tmp_path / "second"
    made = build_graph(path, out, previous=old)
    changed = (out / "manifest.json").stat().st_mtime_ns
    assert build_graph(path, out, previous=Graph.open(old.path or "")).checksum == made.checksum
    assert (out / "manifest.json").stat().st_mtime_ns == changed
    with pytest.raises(OutputExistsError, match="from other input"):
        build_graph(path, out)
    with pytest.raises(OutputExistsError, match="from other input"):
        build_graph(path, out, previous=made)


def test_a_key_that_comes_back_is_a_new_node(tmp_path: Path) -> None:
    graphs = [first(tmp_path)]
    for i, user in enumerate(["ann", "bob", "ann"]):
        inputs = EdgeInput(edges([(user, "tea")]), src_kind="user", dst_kind="item")
        graphs.append(build_graph(inputs, tmp_path / str(i), previous=graphs[-1]))
    assert [graph.removed.tolist() for graph in graphs] == [[], [0, 3, 4], [0, 2, 3, 4], [0, 2, 3, 4, 5]]
    assert graphs[-1].ids(["tea", "ann"]).tolist() == [1, 6]
    assert graphs[-1].indices.tolist() == [6, 1]


def test_key_types_go_on(tmp_path: Path) -> None:
    words, numbers = first(tmp_path), build_graph(edges([(1, 2)]), tmp_path / "numbers")
    (tmp_path / "edges.csv").write_text("src,dst\n7,8\n")
    strings = build_graph(tmp_path / "edges.csv", tmp_path / "strings", previous=words)
    assert strings.keys(strings.live).tolist() == ["7", "8"]
    (tmp_path / "words.csv").write_text("src,dst\n7,8\n7,x\n")
    with pytest.raises(DataError, match=r"words\.csv: row 3: 'dst' must be an integer \(got 'x'\)"):
        build_graph(tmp_path / "words.csv", tmp_path / "out", previous=numbers)
    with pytest.raises(ParameterError, match="'key_type' must be string, as in the previous graph"):
        build_graph(tmp_path / "edges.csv", tmp_path / "out", previous=words, key_type="int64")
    assert not (tmp_path / "out").exists()


def test_a_removed_node_is_refused_by_its_id(tmp_path: Path) -> None:
    new = second(first(tmp_path), tmp_path / "second")
    with pytest.raises(UnknownNodeError, match="unknown node id 3; that node was removed"):
        new.keys([0, 3])
    with pytest.raises(UnknownNodeError, match="unknown user node 'bob'"):
        new.ids(["bob"], "user")
    assert new.of_kinds(["user"]).tolist() == [False, False, True, False, True, False, True]


def test_a_store_in_memory_has_removed_nodes_too(tmp_path: Path) -> None:
    graph = Graph.from_arrays([0, 1, 1, 2], [2, 0], keys=["a", "gone", "c"], removed=[1])
    saved = Graph.open(graph.save(tmp_path / "saved").path or "")
    assert saved.checksum == graph.checksum
    assert saved.removed.tolist() == [1]
    assert saved.nodes.keys.to_pylist() == ["a", "", "c"]
    assert graph.checksum != Graph.from_arrays([0, 1, 1, 2], [2, 0], keys=["a", "", "c"]).checksum
    for removed, message in [
        ([2], r"a removed node must have no edges \(node 2\)"),
        ([1, 1], "'removed' must be ascending ids between 0 and 2"),
        ([3], "'removed' must be ascending ids between 0 and 2"),
    ]:
        with pytest.raises(DataError, match=message):
            Graph.from_arrays([0, 1, 1, 2], [2, 0], removed=removed)
    with pytest.raises(DataError, match=r"a removed node must have no edges \(node 1\)"):
        Graph.from_arrays([0, 1, 1], [1], removed=[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": ["a", "x", "c", "d"]}, r"\(node 1 has another key\)"),
        ({"keys": [1, 2, 3, 4]}, "its keys are of another type"),
        ({"kinds": ("item", "user")}, "kinds were user, item, are item, user"),
        ({"kind_ids": [0, 1, 1, 1]}, r"\(node 1 is of another kind\)"),
        ({"removed": []}, r"\(node 2 was removed and is there again\)"),
    ],
)
def test_what_is_not_a_successor(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {
        "keys": ["a", "b", "c", "d"],
        "kinds": ("user", "item"),
        "kind_ids": [0, 0, 1, 1],
        "removed": [2],
    }
    old = Graph.from_arrays([0, 1, 2, 2, 2], [1, 3], **options)
    with pytest.raises(StoreError, match=message):
        check_successor(old, Graph.from_arrays([0, 1, 2, 2, 2], [1, 0], **options | change))
    more: dict[str, Any] = {"keys": list("abcde"), "kind_ids": [0, 0, 1, 1, 2]}
    kinds = {"kinds": ("user", "item", "llm")}
    new = Graph.from_arrays([0, 1, 2, 2, 2, 2], [4, 0], **options | more | kinds | {"removed": [2, 3]})
    check_successor(old, new)
    with pytest.raises(StoreError, match="5 nodes became 4"):
        check_successor(new, Graph.from_arrays([0, 1, 2, 2, 2], [1, 0], **options | kinds))


def test_a_long_lineage_is_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppr.lineage._CHUNK_NODES", 3)
    keys = [str(i) for i in range(10)]
    old = Graph.from_arrays(np.zeros(11, int), [], keys=keys)
    check_successor(old, Graph.from_arrays(np.zeros(12, int), [], keys=[*keys, "x"], removed=[2, 3, 4, 5]))
    with pytest.raises(StoreError, match="node 7 has another key"):
        check_successor(old, Graph.from_arrays(np.zeros(11, int), [], keys=[*keys[:7], "x", *keys[8:]]))
