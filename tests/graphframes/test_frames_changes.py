"""Changes to a graph that come as GraphFrames; the truth is the same changes from tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from ppr.build import build_graph
from ppr.changes import change_graph
from ppr.errors import DataError, OutputExistsError
from ppr.graph import Graph
from ppr.inputs import EdgeInput, NodeInput

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
MakeFrame = Callable[[Any, Any], Any]


@pytest.fixture
def market(tmp_path: Path) -> Graph:
    """Users who buy items, and follow each other."""
    bought = pa.table({"user": ["ann", "ann", "bob"], "item": ["tea", "rice", "tea"]})
    follows = EdgeInput(pa.table({"src": ["ann"], "dst": ["bob"]}), src_kind="user", dst_kind="user")
    return build_graph([EdgeInput(bought), follows], tmp_path / "market")


def test_added_and_removed_graph_frames(
    spark: SparkSession, graph_frame: MakeFrame, market: Graph, tmp_path: Path
) -> None:
    vertices = [("ann", "user"), ("bob", "user"), ("tea", "item"), ("gin", "item"), ("eve", "user")]
    people = spark.createDataFrame([*vertices, ("alone", "user")], "id string, kind string")
    more = spark.createDataFrame(
        [("ann", "tea", 2.0), ("bob", "gin", 1.0), ("bob", "ann", 1.0)],
        "src string, dst string, weight double",
    )
    less = spark.createDataFrame(
        [("ann", "rice", None), ("ann", "bob", -1.0)], "src string, dst string, weight double"
    )
    known = spark.createDataFrame(
        [("ann", "user"), ("bob", "user"), ("rice", "item")], "id string, kind string"
    )
    added, removed = graph_frame(people, more), graph_frame(known, less)
    changed = change_graph(market, tmp_path / "changed", added=added, removed=removed)
    assert changed.keys(changed.nodes_of_kind("user")).tolist() == ["ann", "bob", "alone", "eve"]

    tables = {
        "bought": {"user": ["ann", "bob"], "item": ["tea", "gin"], "weight": [2.0, 1.0]},
        "follows": {"src": ["bob"], "dst": ["ann"]},
    }
    as_tables = change_graph(
        market,
        tmp_path / "tables",
        added=[
            EdgeInput(pa.table(tables["bought"])),
            EdgeInput(pa.table(tables["follows"]), src_kind="user", dst_kind="user"),
        ],
        removed=[
            EdgeInput(pa.table({"user": ["ann"], "item": ["rice"]})),
            EdgeInput(pa.table({"src": ["ann"], "dst": ["bob"]}), src_kind="user", dst_kind="user"),
        ],
    )
    assert changed.n_edges == as_tables.n_edges
    assert edges_of(changed) == edges_of(as_tables)

    assert change_graph(market, tmp_path / "changed", added=added, removed=removed).n_nodes == changed.n_nodes
    with pytest.raises(OutputExistsError, match="from other"):
        change_graph(market, tmp_path / "changed", added=added)
    listed = NodeInput(pa.table({"key": ["ann"]}), kind="user")
    isolated = graph_frame(people.where("id in ('ann', 'bob', 'gin')"), more.where("dst = 'gin'"))
    with pytest.raises(DataError, match=r"added 0: vertices: a removed node must not be among .* user 'ann'"):
        change_graph(market, tmp_path / "out", added=isolated, removed_nodes=listed)
    assert not (tmp_path / "out").exists()


def edges_of(graph: Graph) -> set[tuple[str, str, float]]:
    src = [
        key for node, key in enumerate(graph.nodes.keys.to_pylist()) for _ in range(graph.out_degree[node])
    ]
    return set(zip(src, graph.keys(graph.indices).tolist(), graph.weights().tolist(), strict=True))
