"""Removed nodes in everything that goes over nodes: never a source, never an answer, no error either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.evaluate import most_popular
from jobs.keys import find_ids
from ppr.blocks import plan_blocks, predicted_moves
from ppr.errors import ParameterError, UnknownNodeError
from ppr.exact import exact_ppr
from ppr.fingerprints import FingerprintStore, export_parquet
from ppr.fingerprints.writer import StoreWriter
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.metrics import sample_sources
from ppr.params import FingerprintParams
from ppr.recommend import recommend, recommend_new
from ppr.verd import query, query_edges
from router.surroundings import Surroundings
from tests.oracles.random_graphs import random_market

N_ITEMS, N_USERS = 20, 15
GONE = [0, 5, 22, 34]  # the most popular item, another one, two users
LIVE = [node for node in range(N_ITEMS + N_USERS) if node not in GONE]
PARAMS = FingerprintParams(n_walks=500, top_k=None, seed=3)


@pytest.fixture(scope="module")
def old() -> Graph:
    return random_market(4, n_users=N_USERS, n_items=N_ITEMS)


@pytest.fixture(scope="module")
def graph(old: Graph) -> Graph:
    """The market without some of its nodes, by their rows and columns."""
    adjacent = old.transition().toarray() > 0
    adjacent[GONE], adjacent[:, GONE] = False, False
    keys = [f"key {node}" for node in range(old.n_nodes)]
    return Graph.from_arrays(
        np.concatenate([[0], np.cumsum(adjacent.sum(axis=1))]),
        np.nonzero(adjacent)[1],
        kind_ids=old.kind_ids,
        kinds=old.kinds,
        keys=keys,
        directed=False,
        removed=GONE,
    )


@pytest.fixture(scope="module")
def store(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    return compute_fingerprints(graph, tmp_path_factory.mktemp("removed") / "fresh", PARAMS, threads=1)


@pytest.fixture(scope="module")
def kept(old: Graph, graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> FingerprintStore:
    """Rows that an earlier graph's walks made, as a refresh keeps them: they hold nodes that are gone now."""
    folder = tmp_path_factory.mktemp("kept")
    rows = compute_fingerprints(old, folder / "old", PARAMS, threads=1).arrays
    (folder / "kept").mkdir()
    with StoreWriter.of_graph(folder / "kept", PARAMS, graph) as writer:
        writer.append(rows.take(np.array(LIVE)))
        writer.close()
    store = FingerprintStore.open(folder / "kept", graph=graph)
    assert np.isin(GONE, store.ids).all()
    return store


def test_all_sources_are_those_that_are_there(graph: Graph, store: FingerprintStore) -> None:
    assert store.sources.tolist() == LIVE
    assert store.manifest["parameters"]["sources"] == "all"
    store.validate(graph)
    assert FingerprintStore.open(store.path, graph=graph).n_sources == len(LIVE)
    assert np.concatenate(plan_blocks(graph, None, PARAMS)).tolist() == LIVE
    assert not predicted_moves(graph, PARAMS)[GONE].any()
    assert not np.isin(GONE, store.ids).any()
    sample = sample_sources(graph, per_bucket=9, n_buckets=9)
    assert set(sample.tolist()) == {node for node in LIVE if graph.out_degree[node]}
    truth = exact_ppr(graph, LIVE, restart_prob=PARAMS.restart_prob)
    estimate = np.zeros_like(truth)
    for row, node in enumerate(LIVE):
        ids, scores, _ = store.row(node)
        estimate[row, ids] = scores
    assert np.abs(estimate - truth).max() < 0.1
    assert not truth[:, GONE].any()


def test_a_removed_node_is_no_source(graph: Graph, store: FingerprintStore, tmp_path: Path) -> None:
    gone, near = [1, 22], 6
    with pytest.raises(ParameterError, match=r"'sources' must not be removed nodes \(got 22\)"):
        compute_fingerprints(graph, tmp_path / "out", PARAMS, sources=gone)
    assert not list(tmp_path.iterdir())
    asked: list[Any] = [
        lambda: exact_ppr(graph, gone, restart_prob=0.15),
        lambda: query(graph, store, gone),
        lambda: recommend(graph, store, gone, 3),
        lambda: query_edges(graph, store, [([near, 22], None)]),
        lambda: recommend_new(graph, store, [([near, 22], None)], 3),
    ]
    for ask in asked:
        with pytest.raises(UnknownNodeError, match="node 22 was removed from the graph"):
            ask()


@pytest.mark.parametrize("which", ["store", "kept"])
def test_a_removed_node_is_no_answer(graph: Graph, which: str, request: pytest.FixtureRequest) -> None:
    """Rankings are those of the same scores without the removed nodes."""
    store = request.getfixturevalue(which)
    users = [node for node in LIVE if node >= N_ITEMS]
    ids, scores = recommend(graph, store, users, 6, method="rows")
    for row, user in enumerate(users):
        near, score, mass = store.row(user)
        seen = graph.indices[graph.indptr[user] : graph.indptr[user + 1]]
        fits = np.flatnonzero((near < N_ITEMS) & ~np.isin(near, [*seen, *GONE]))
        best = sorted(fits, key=lambda at: (-score[at], near[at]))[:6]
        assert ids[row][ids[row] >= 0].tolist() == near[best].tolist()
        np.testing.assert_allclose(scores[row][: len(best)], score[best] / mass, rtol=1e-6)
    near_node = [([6, users[0]], None)]
    for found, _ in (
        query(graph, store, LIVE, steps=1),
        query_edges(graph, store, near_node, steps=1),
        recommend(graph, store, users, 30, exclude_seen=False),
        recommend_new(graph, store, near_node, 30),
    ):
        assert (found >= 0).any(axis=1).all()
        assert not np.isin(found, GONE).any()
    everything, _ = query(graph, store, [users[0]], steps=1)
    assert len(everything[0]) > 10


@pytest.mark.parametrize("which", ["store", "kept"])
def test_surroundings_and_popularity(graph: Graph, which: str, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(which)
    near = Surroundings(graph, store, 50)
    assert near.answers_queries
    names = {f"key {node}" for node in LIVE}
    for node in range(N_ITEMS, N_ITEMS + N_USERS):
        found = near.of(f"key {node}")
        assert bool(found) == (node in LIVE)
        assert all(set(weights) <= names for weights in found.values())
    popular = most_popular(graph, np.array([-1]), 30, kinds=("item",))
    assert sorted(popular[popular >= 0].tolist()) == [node for node in LIVE if node < N_ITEMS]
    assert find_ids(graph, graph.nodes.keys.take([0, 1]), ("item",)).tolist() == [-1, 1]


def test_exports_name_no_removed_node(graph: Graph, store: FingerprintStore, tmp_path: Path) -> None:
    export_parquet(store, graph, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["source"] for row in table] == LIVE
    for row in table:
        assert row["source_key"] == f"key {row['source']}"
        assert row["keys"] == [f"key {node}" for node in row["ids"]]
        assert not set(row["ids"]) & set(GONE)
        assert len(row["keys"]) == len(row["scores"])
