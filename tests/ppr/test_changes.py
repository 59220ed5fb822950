"""Changed graphs, against a build of all resulting edges, naive and not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppr.build import build_graph
from ppr.changes import change_graph
from ppr.errors import DataError, OutputExistsError, ParameterError
from ppr.graph import Graph, content_checksum
from ppr.inputs import EdgeInput, NodeInput
from ppr.lineage import check_successor
from tests.oracles.naive_graph import assert_equal, naive_graph

pytestmark = pytest.mark.usefixtures("quick_disk")

Node = tuple[str, Any]
Edges = dict[tuple[Node, Node], float]

scratch_is_shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


def tables_of(edges: Edges, *, directed: bool = True) -> list[dict[str, Any]]:
    """A table per pair of kinds."""
    rows = defaultdict(list)
    for ((src_kind, src), (dst_kind, dst)), weight in edges.items():
        rows[src_kind, dst_kind].append((src, dst, weight))
    return [
        {"rows": rows[pair], "src_kind": pair[0], "dst_kind": pair[1], "directed": directed} for pair in rows
    ]


def inputs_of(tables: list[dict[str, Any]]) -> list[EdgeInput]:
    inputs = []
    for table in tables:
        src, dst, weight = (list(column) for column in zip(*table["rows"], strict=True))
        data = pa.table({"src": src, "dst": dst, "weight": weight})
        inputs.append(EdgeInput(data, **{name: value for name, value in table.items() if name != "rows"}))
    return inputs


def nodes_of(nodes: list[Node]) -> Any:
    if not nodes:
        return ()
    return NodeInput(pa.table({"key": [key for _, key in nodes], "kind": [kind for kind, _ in nodes]}))


@st.composite
def changes(draw: st.DrawFn, weights: st.SearchStrategy[float]) -> dict[str, Any]:
    """A graph by its edges, both ways where it is undirected, and two changes, one after the other."""
    keys = draw(st.sampled_from([st.integers(-2, 9), st.sampled_from(["a", "b", "é", "z", "7", "zz", "y"])]))
    node = st.tuples(st.sampled_from(["user", "item"]), keys)
    directed = draw(st.booleans())
    pair = st.tuples(node, node).filter(lambda edge: edge[0] != edge[1])
    edges = draw(st.dictionaries(pair, weights, min_size=1, max_size=14))
    if not directed:
        edges = {
            edge: weight for edge, weight in edges.items() if edge[::-1] not in edges or edge < edge[::-1]
        }
    steps = []
    now = both_ways(edges, directed)
    live = {node for edge in edges for node in edge}
    for _ in range(2):
        gone = draw(st.lists(st.sampled_from(sorted(live)), unique=True, max_size=2)) if live else []
        left = sorted(edge for edge in now if directed or edge < edge[::-1])
        removed = draw(st.lists(st.sampled_from(left), unique=True, max_size=4)) if left else []
        forbidden = set(both_ways(dict.fromkeys(removed, 1.0), directed))
        allowed = pair.filter(lambda edge, no=forbidden, out=gone: edge not in no and not {*edge} & {*out})
        rows = draw(st.lists(st.tuples(allowed, weights), max_size=5))
        steps.append({"added": rows, "removed": removed, "removed_nodes": gone})
        now, live = changed(now, live, steps[-1], directed)
    return {"edges": edges, "directed": directed, "steps": steps}


def both_ways(edges: Edges, directed: bool) -> Edges:
    return edges if directed else {way: w for edge, w in edges.items() for way in (edge, edge[::-1])}


def changed(edges: Edges, live: set[Node], step: dict[str, Any], directed: bool) -> tuple[Edges, set[Node]]:
    """The obvious way: a dictionary of edges."""
    gone = set(step["removed_nodes"])
    out = set(both_ways(dict.fromkeys(step["removed"], 1.0), directed))
    now = {edge: w for edge, w in edges.items() if edge not in out and not {*edge} & gone}
    for edge, weight in step["added"]:
        for way in {edge} if directed else {edge, edge[::-1]}:
            now[way] = now.get(way, 0.0) + weight
    return now, (live - gone) | {node for edge, _ in step["added"] for node in edge}


def arguments(step: dict[str, Any], directed: bool) -> dict[str, Any]:
    """Changes as :func:`change_graph` takes them; rows given twice are in one table."""
    added = defaultdict(list)
    for ((src_kind, src), (dst_kind, dst)), weight in step["added"]:
        added[src_kind, dst_kind].append((src, dst, weight))
    tables = [
        {"rows": rows, "src_kind": pair[0], "dst_kind": pair[1], "directed": directed}
        for pair, rows in added.items()
    ]
    removed = tables_of(dict.fromkeys(step["removed"], 9.0), directed=directed)
    return {
        "added": inputs_of(tables),
        "removed": inputs_of(removed),
        "removed_nodes": nodes_of(step["removed_nodes"]),
    }


@scratch_is_shared
@given(changes(st.just(1.0)) | changes(st.sampled_from([1.0, 2.0, 7.0])), st.integers(1, 9))
def test_same_bits_as_a_build_of_all_resulting_edges(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any], bucket_edges: int
) -> None:
    folder, directed = tmp_path_factory.mktemp("changes"), drawn["directed"]
    tables = tables_of(drawn["edges"], directed=directed)
    graph, naive = build_graph(inputs_of(tables), folder / "first"), naive_graph(tables)
    edges, live = both_ways(drawn["edges"], directed), {node for edge in drawn["edges"] for node in edge}
    for i, step in enumerate(drawn["steps"]):
        options = arguments(step, directed)
        if not any(options.values()):
            continue
        before, (edges, live) = edges, changed(edges, live, step, directed)
        old, graph = graph, change_graph(graph, folder / str(i), bucket_edges=bucket_edges, **options)
        naive = naive_graph(tables_of(edges), live, previous=naive)
        assert_equal(graph, naive)
        assert graph.directed == directed
        assert Graph.open(folder / str(i)).checksum == graph.checksum
        check_successor(old, graph)
        check_counts(graph, old, before, edges, step)
        if edges:
            build = {"nodes": nodes_of(sorted(live)), "previous": old}
            built = build_graph(inputs_of(tables_of(edges)), folder / f"built-{i}", **build)
            assert built.checksum == content_checksum(replace(graph, directed=True))


def check_counts(graph: Graph, old: Graph, before: Edges, after: Edges, step: dict[str, Any]) -> None:
    counts = graph.manifest["counts"]
    touched = {src for src, _ in before.keys() ^ after.keys()}
    touched |= {src for src, dst in before.keys() & after.keys() if before[src, dst] != after[src, dst]}
    assert counts["edges_added"] == len(after.keys() - before.keys())
    assert counts["edges_removed"] == len(before.keys() - after.keys())
    assert counts["nodes_added"] == graph.n_nodes - old.n_nodes
    assert counts["nodes_removed"] == len(step["removed_nodes"])
    assert counts["rows_changed"] == len(touched)
    assert graph.manifest["parents"] == {"graph": old.checksum}


@scratch_is_shared
@given(changes(st.sampled_from([0.1, 0.25, 3.0, 1e-3, 1.0])), st.integers(1, 9))
def test_weights_within_the_quantisation(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any], bucket_edges: int
) -> None:
    """Rows with a change are right within 2^-31 of their sum per edge and change, others keep their bits."""
    folder, directed = tmp_path_factory.mktemp("changes"), drawn["directed"]
    graph = build_graph(inputs_of(tables_of(drawn["edges"], directed=directed)), folder / "first")
    edges, live = both_ways(drawn["edges"], directed), {node for edge in drawn["edges"] for node in edge}
    for i, step in enumerate(drawn["steps"]):
        options = arguments(step, directed)
        if not any(options.values()):
            continue
        before, (edges, live) = edges, changed(edges, live, step, directed)
        old, graph = graph, change_graph(graph, folder / str(i), bucket_edges=bucket_edges, **options)
        got, sums = weights_of(graph), defaultdict(float)
        assert got.keys() == edges.keys()
        for (src, _), weight in [*edges.items(), *before.items()]:
            sums[src] += weight
        for edge, weight in edges.items():
            # What is rounded is the weight at each quantisation, relative to the row's sum then.
            assert abs(got[edge] - weight) <= 8 * 2.0**-31 * sums[edge[0]] * (i + 1)
        was, now = bits_of(old), bits_of(graph)
        same = {node for node in live if row(before, node) == row(edges, node)}
        for node in same & was.keys():
            assert was[node] == now[node]


def row(edges: Edges, node: Node) -> dict[Node, float]:
    return {dst: weight for (src, dst), weight in edges.items() if src == node}


def names(graph: Graph) -> list[Node]:
    return [
        (graph.kinds[kind], key)
        for kind, key in zip(graph.kind_ids, graph.nodes.keys.to_pylist(), strict=True)
    ]


def weights_of(graph: Graph) -> Edges:
    name = names(graph)
    src = np.repeat(np.arange(graph.n_nodes), graph.out_degree)
    edges = zip(src, graph.indices, graph.weights(), strict=True)
    return {(name[s], name[d]): float(weight) for s, d, weight in edges}


def bits_of(graph: Graph) -> dict[Node, Any]:
    """Strength, neighbours and cumulative weights of each live node's row."""
    name = names(graph)
    rows = {}
    for node in graph.live:
        part = slice(graph.indptr[node], graph.indptr[node + 1])
        sums = (
            np.arange(1, part.stop - part.start + 1) if graph.cumulative is None else graph.cumulative[part]
        )
        rows[name[node]] = graph.strength[node], graph.indices[part].tolist(), sums.tolist()
    return rows


def market(tmp_path: Path, **options: Any) -> Graph:
    rows = [("ann", "tea"), ("ann", "rice"), ("bob", "tea"), ("carol", "rice")]
    tables = [
        {"rows": [(*row, 1.0) for row in rows], "src_kind": "user", "dst_kind": "item", "directed": False}
    ]
    return build_graph(inputs_of(tables), tmp_path / "market", **options)


def test_an_edge_given_again_makes_the_graph_weighted(tmp_path: Path) -> None:
    path = tmp_path / "again.csv"
    path.write_text("user,item\nann,tea\nann,tea\nbob,rice\n")
    graph = change_graph(market(tmp_path), tmp_path / "out", added=path)
    rows = [("ann", "tea", 3.0), ("ann", "rice", 1.0), ("bob", "tea", 1.0), ("carol", "rice", 1.0)]
    table = {"rows": [*rows, ("bob", "rice", 1.0)], "src_kind": "user", "dst_kind": "item", "directed": False}
    assert graph.weighted
    assert_equal(graph, naive_graph([table]))
    back = change_graph(graph, tmp_path / "back", removed=pa.table({"user": ["ann"], "item": ["tea"]}))
    assert not back.weighted
    assert not (tmp_path / "back" / "cumulative.npy").exists()


def test_erased_keys_are_in_no_file(tmp_path: Path) -> None:
    listed = pa.table({"key": ["bob"]})
    graph = change_graph(market(tmp_path), tmp_path / "out", removed_nodes=listed)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if b"bob" in path.read_bytes()]
    assert any(b"carol" in path.read_bytes() for path in files)
    assert graph.manifest["counts"]["removed"] == 1


def test_nothing_is_done_twice(tmp_path: Path) -> None:
    graph, path, out = market(tmp_path), tmp_path / "new.csv", tmp_path / "out"
    path.write_text("user,item\ndan,tea\n")
    made = change_graph(graph, out, added=path)
    written = (out / "manifest.json").stat().st_mtime_ns
    assert change_graph(graph, out, added=path).checksum == made.checksum
    assert (out / "manifest.json").stat().st_mtime_ns == written
    for options in ({"removed": path}, {"added": [EdgeInput(path), EdgeInput(path)]}):
        with pytest.raises(OutputExistsError, match="from other input"):
            change_graph(graph, out, **options)
    with pytest.raises(OutputExistsError, match="from other input"):
        change_graph(made, out, added=path)
    memory = pa.table({"user": ["dan"], "item": ["tea"]})
    change_graph(graph, tmp_path / "memory", added=memory)
    assert change_graph(graph, tmp_path / "memory", added=memory).checksum == made.checksum
    with pytest.raises(OutputExistsError, match="from other data"):
        change_graph(graph, tmp_path / "memory", added=pa.table({"user": ["eve"], "item": ["tea"]}))


def test_tables_without_rows_change_nothing(tmp_path: Path) -> None:
    graph = market(tmp_path)
    (tmp_path / "none.csv").write_text("user,item\n")
    same = change_graph(graph, tmp_path / "same", added=tmp_path / "none.csv", removed=tmp_path / "none.csv")
    assert same.checksum == graph.checksum
    assert same.manifest["counts"]["rows_changed"] == 0


BAD = [
    (
        {"removed": "ann,tea\ncarol,tea\n"},
        r"removed\.csv: row 3: the edge from user 'carol' to item 'tea' is not there",
    ),
    ({"removed": "ann,tea\nzed,tea\n"}, r"removed\.csv: row 3: 'user': the graph has no user node 'zed'"),
    ({"removed": "ann,gin\n"}, r"removed\.csv: row 2: 'item': the graph has no item node 'gin'"),
    (
        {"removed": "ann,tea\nbob,tea\nann,tea\n"},
        r"row 4: the edge from user 'ann' to item 'tea' is removed twice \(before in .*removed\.csv: row 2\)",
    ),
    (
        {"removed": "bob,tea\nann,tea\n", "added": "zed,tea\nann,tea\n"},
        r"removed\.csv: row 3: .* 'ann' to item 'tea' is both removed and added \(in .*added\.csv: row 3\)",
    ),
    (
        {"removed_nodes": "ann,user\ntea,user\n"},
        r"removed_nodes\.csv: row 3: the graph has no user node 'tea' \(its kinds are item, user\)",
    ),
    ({"removed_nodes": "ann,llm\n"}, r"removed_nodes\.csv: row 2: the graph has no llm node 'ann'"),
    (
        {"removed_nodes": "ann,user\nbob,user\nann,user\n"},
        r"removed_nodes\.csv: row 4: user 'ann' is listed twice",
    ),
    (
        {"removed_nodes": "ann,user\n", "added": "bob,rice\nann,gin\n"},
        r"added\.csv: row 3: a removed node must get no edge \(got user 'ann'\)",
    ),
]


@pytest.mark.parametrize(("texts", "message"), BAD)
def test_bad_changes_name_file_and_row(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    graph = market(tmp_path)
    options = {}
    for name, text in texts.items():
        options[name] = tmp_path / f"{name}.csv"
        header = "node,kind\n" if name == "removed_nodes" else "user,item\n"
        options[name].write_text(header + text)
    with pytest.raises(DataError, match=message):
        change_graph(graph, tmp_path / "out", **options)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_bad_changes_of_one_kind(tmp_path: Path) -> None:
    graph = build_graph(EdgeInput(pa.table({"src": [1, 2], "dst": [2, 3]}), directed=False), tmp_path / "g")
    with pytest.raises(DataError, match=r"removed 0: row 1: 'src': the graph has no node 9 \(its kinds are"):
        change_graph(graph, tmp_path / "out", removed=pa.table({"src": [9], "dst": [1]}))
    ways = pa.table({"src": [1, 2], "dst": [2, 1]})
    with pytest.raises(DataError, match=r"removed 0: row 2: the edge from node 2 to node 1 is removed twice"):
        change_graph(graph, tmp_path / "out", removed=ways)
    halves = [EdgeInput(ways.slice(i, 1), directed=True) for i in range(2)]
    assert change_graph(graph, tmp_path / "halves", removed=halves).n_edges == 2
    with pytest.raises(DataError, match=r"added 0: column 'src' must hold integers \(got string\)"):
        change_graph(graph, tmp_path / "out", added=pa.table({"src": ["x"], "dst": ["y"]}))
    with pytest.raises(DataError, match="added 0: row 1: 'weight' must be positive and finite"):
        change_graph(graph, tmp_path / "out", added=pa.table({"src": [5], "dst": [6], "weight": [0.0]}))
    huge = pa.table({"src": [1, 1], "dst": [3, 2], "weight": [1.7e308, 1.7e308]})
    with pytest.raises(DataError, match="node 1: the sum of its weights must be finite"):
        change_graph(graph, tmp_path / "out", added=huge)
    with pytest.raises(ParameterError, match="a change must be given"):
        change_graph(graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_key_in_several_kinds_needs_its_kind(tmp_path: Path) -> None:
    table = {
        "rows": [("a", "a", 1.0), ("b", "c", 1.0)],
        "src_kind": "user",
        "dst_kind": "item",
        "directed": False,
    }
    graph = build_graph(inputs_of([table]), tmp_path / "g")
    keys = pa.table({"key": ["b", "a"]})
    with pytest.raises(
        DataError, match=r"row 2: 'kind' must be given: 'a' is in several kinds \(item, user\)"
    ):
        change_graph(graph, tmp_path / "out", removed_nodes=keys)
    changed = change_graph(graph, tmp_path / "out", removed_nodes=NodeInput(keys, kind="user"))
    assert changed.nodes_of_kind("user").tolist() == []
    assert changed.removed.tolist() == [2, 3]


def test_many_pieces_of_a_larger_graph(tmp_path: Path) -> None:
    """Long runs of rows without a change, rows longer than a piece, changes at the first and last node."""
    rng = np.random.default_rng(3)
    src, dst = rng.integers(0, 2000, 20_000), rng.zipf(1.4, 20_000) % 2000
    edges = {(("node", int(s)), ("node", int(d))): 1.0 for s, d in zip(src, dst, strict=True) if s != d} | {
        (("node", 7), ("node", other)): 1.0 for other in range(8, 1500)
    }
    graph = build_graph(inputs_of(tables_of(edges)), tmp_path / "g")
    given = sorted(edges)
    new = [
        ((a, b), 1.0)
        for a, b in [(("node", 0), ("node", 5000)), (("node", 1999), ("node", 1))]
        if (a, b) not in edges
    ]
    step = {"added": new, "removed": [given[0], given[-1], given[9000]], "removed_nodes": [("node", 7)]}
    step["removed"] = [edge for edge in step["removed"] if edge[0] != ("node", 7)]
    live = {node for edge in edges for node in edge}
    after, live = changed(edges, live, step, True)
    steps: list[tuple[str, int, int | None]] = []
    made = [
        change_graph(
            graph,
            tmp_path / str(size),
            bucket_edges=size,
            progress=lambda *s: steps.append(s),
            **arguments(step, True),
        )
        for size in (300, 5000, 1 << 22)
    ]
    assert len({graph.checksum for graph in made}) == 1
    assert_equal(made[0], naive_graph(tables_of(after), live, previous=naive_graph(tables_of(edges))))
    rows_done = [done for stage, done, total in steps if stage == "rows"]
    assert len(rows_done) >= 50
    assert list(dict.fromkeys(stage for stage, _, _ in steps)) == ["read changes", "rows", "checksum"]
