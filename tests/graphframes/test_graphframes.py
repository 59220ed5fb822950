"""Real GraphFrames: what its algorithms see of a graph and of fingerprints that came through Fairpath."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from graphframes import GraphFrame

from ppr.build import build_graph
from ppr.exact import exact_ppr
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.spark.graphframes import fingerprints_graphframe
from tests.graphframes.conftest import ROOT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
RESTART_PROB = 0.5  # few iterations of GraphFrames, which are slow


@pytest.fixture(scope="module")
def friends(spark: SparkSession) -> GraphFrame:
    """Users and items; each user has bought something."""
    rng = np.random.default_rng(11)
    vertices = [(f"user-{i}", "user") for i in range(30)] + [(f"item-{i}", "item") for i in range(12)]
    bought = {(f"user-{i}", f"item-{item}") for i in range(30) for item in rng.integers(0, 11, 3)}
    return GraphFrame(
        spark.createDataFrame(vertices, "id string, kind string"),
        spark.createDataFrame(sorted(bought), "src string, dst string"),
    )


@pytest.fixture(scope="module")
def graph(friends: GraphFrame, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build_graph(EdgeInput(friends, directed=False), tmp_path_factory.mktemp("graph") / "graph")


@pytest.fixture(scope="module")
def near(spark: SparkSession, graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> GraphFrame:
    """Its fingerprints."""
    params = FingerprintParams(n_walks=2000, restart_prob=RESTART_PROB, top_k=15)
    store = compute_fingerprints(graph, tmp_path_factory.mktemp("fingerprints") / "out", params)
    return fingerprints_graphframe(spark, store, graph)


def test_a_graph_frame_comes_back(near: GraphFrame, friends: GraphFrame) -> None:
    assert isinstance(near, GraphFrame)
    assert set(near.vertices.select("id", "kind").collect()) == set(friends.vertices.collect())
    assert near.edges.columns == ["src", "dst", "score", "rank"]


def test_degrees(near: GraphFrame) -> None:
    rows = near.edges.collect()
    found = {row.id: row.inDegree for row in near.inDegrees.collect()}
    assert found == Counter(row.dst for row in rows)
    assert max(row.outDegree for row in near.outDegrees.collect()) == 15


def test_a_motif_finds_who_is_nearest_to_each_other(near: GraphFrame) -> None:
    first = {(row.src, row.dst) for row in near.edges.where("rank <= 3 and src <> dst").collect()}
    motif = near.find("(a)-[e]->(b); (b)-[f]->(a)").where("e.rank <= 3 and f.rank <= 3 and a.id < b.id")
    found = {(row.a.id, row.b.id) for row in motif.collect()}
    assert found == {(a, b) for a, b in first if a < b and (b, a) in first}
    assert found


def test_page_rank_runs_on_fingerprints(near: GraphFrame) -> None:
    ids = sorted(row.id for row in near.vertices.collect())
    matrix = np.zeros((42, 42))
    for row in near.edges.collect():
        matrix[ids.index(row.src), ids.index(row.dst)] = 1
    expected = np.ones(42)
    for _ in range(4):
        expected = 0.15 + 0.85 * (expected / matrix.sum(axis=1)) @ matrix

    ranked = near.pageRank(resetProbability=0.15, maxIter=4).vertices.collect()

    found = {row.id: row.pagerank for row in ranked}
    np.testing.assert_allclose([found[i] for i in ids], expected, rtol=1e-9)


def test_its_personalized_page_rank_goes_to_the_exact_one_of_the_graph_built(
    friends: GraphFrame, graph: Graph
) -> None:
    back = friends.edges.selectExpr("dst as src", "src as dst")
    both = GraphFrame(friends.vertices, friends.edges.union(back))
    keys = ["user-3", "item-2"]

    theirs = both.parallelPersonalizedPageRank(
        resetProbability=RESTART_PROB, sourceIds=keys, maxIter=14
    ).vertices.collect()

    found = np.zeros((2, graph.n_nodes))
    for row in theirs:
        found[:, graph.ids([row.id])[0]] = row.pageranks.toArray()
    exact = exact_ppr(graph, graph.ids(keys), restart_prob=RESTART_PROB)
    np.testing.assert_allclose(found, exact, atol=4 * (1 - RESTART_PROB) ** 13)  # what longer walks may add


def test_integer_ids_stay_bigint(spark: SparkSession, tmp_path: Path) -> None:
    graph = build_graph(pa.table({"src": [2**40, 7], "dst": [7, 2**40]}), tmp_path / "graph")
    store = compute_fingerprints(graph, tmp_path / "out", FingerprintParams(n_walks=50))
    frame = fingerprints_graphframe(spark, store, graph)
    assert dict(frame.vertices.dtypes)["id"] == dict(frame.edges.dtypes)["src"] == "bigint"
    assert {row.id for row in frame.vertices.collect()} == {2**40, 7}


WITHOUT = """
import pyarrow as pa
from jobs.spark_session import spark_session
from ppr.build import build_graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from ppr.spark.graphframes import fingerprints_graphframe

spark = spark_session(master="local[1]")
graph = build_graph(pa.table({"src": [1], "dst": [2]}), "graph")
store = compute_fingerprints(graph, "out", FingerprintParams(n_walks=50))
try:
    fingerprints_graphframe(spark, store, graph)
except OSError as error:
    print(type(error).__name__, error)
"""


def test_a_spark_without_the_jar_says_what_to_add(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), *(entry for entry in sys.path if entry.endswith(".jar"))])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("ResourceError Spark runs without the jar of GraphFrames"), done.stderr
    assert "--packages io.graphframes:graphframes-spark4_2.13:VERSION" in done.stdout
