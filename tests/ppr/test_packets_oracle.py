"""The compiled kernels against the plain version of their rules: every bit of every row."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import ppr.blocks
from ppr.blocks import compute_block
from ppr.graph import Graph
from ppr.params import MAX_SEED, MAX_WALKS, FingerprintParams
from tests.oracles.naive_packets import naive_row
from tests.oracles.random_graphs import random_graph

ROOT = Path(__file__).resolve().parents[2]
LARGEST_TOTAL = 2**32 - 1


def assert_rows_equal(graph: Graph, sources: NDArray[np.integer], params: FingerprintParams) -> None:
    """Each row is the oracle's, to the last bit."""
    table = compute_block(graph, np.asarray(sources, np.int32), params)
    assert table["source"].to_numpy().tolist() == list(sources)
    for source, row in zip(sources, table.to_pylist(), strict=True):
        expected = naive_row(graph, int(source), params)
        assert row["ids"] == expected.ids.tolist()
        assert np.array(row["scores"], np.float32).tobytes() == expected.scores.tobytes()
        assert row["mass"] == expected.mass
        assert row["moves"] == expected.moves


def weights_of(kind: str, rng: np.random.Generator, degrees: NDArray[np.integer]) -> NDArray[Any] | None:
    """Weights of all edges, row after row."""
    n_edges = int(degrees.sum())
    if kind == "none":
        return None
    if kind == "small integers":
        return rng.integers(1, 5, n_edges)
    if kind == "real":
        return rng.lognormal(sigma=3, size=n_edges)
    # Integers whose sum is the largest that a row may have: one edge takes nearly all of it.
    weights = rng.integers(1, 1000, n_edges)
    for end, degree in zip(np.cumsum(degrees), degrees):
        if degree:
            row = weights[end - degree : end]
            row[rng.integers(degree)] += LARGEST_TOTAL - row.sum()
    return weights


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to 14 nodes of any degree, dangling and isolated ones and self-loops included."""
    n_nodes = draw(st.integers(1, 14))
    neighbors = st.lists(st.sets(st.integers(0, n_nodes - 1)), min_size=n_nodes, max_size=n_nodes)
    rows = [sorted(row) for row in draw(neighbors)]
    degrees = np.array([len(row) for row in rows])
    kind = draw(st.sampled_from(["none", "small integers", "real", "largest total"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Graph.from_arrays(
        np.concatenate([[0], np.cumsum(degrees)]),
        np.concatenate([np.array(row, int) for row in rows]),
        weights_of(kind, rng, degrees),
        kind_ids=rng.integers(0, 3, n_nodes),
        kinds=("item", "llm", "user"),
    )


@st.composite
def parameters(draw: st.DrawFn) -> FingerprintParams:
    n_walks = draw(st.sampled_from([1, 2, 3, 7, 64, 3000, MAX_WALKS - 1, MAX_WALKS]) | st.integers(1, 10_000))
    restart_prob = draw(st.sampled_from([0.001, 0.15, 0.999]) | st.floats(0.001, 0.999))
    # About log(R) / c steps pass before the mass of a source falls below one walker's.
    endless = restart_prob < 0.1 and n_walks > 100
    steps = st.integers(1, 200)
    return FingerprintParams(
        restart_prob=restart_prob,
        n_walks=n_walks,
        seed=draw(st.sampled_from([0, MAX_SEED]) | st.integers(0, MAX_SEED)),
        max_steps=draw(steps if endless else st.none() | steps),
        top_k=draw(st.none() | st.integers(1, 20)),
        target_kinds=tuple(draw(st.sets(st.sampled_from(["item", "llm", "user"])))),
        exclude_neighbors=draw(st.booleans()),
    )


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(graph=graphs(), params=parameters())
def test_any_small_graph(graph: Graph, params: FingerprintParams) -> None:
    assert_rows_equal(graph, np.arange(graph.n_nodes)[::-1], params)


@pytest.mark.parametrize("kind", ["none", "small integers", "real", "largest total"])
@pytest.mark.parametrize("n_walks", [10, 200, 3000, 50_000])
def test_graph_with_hubs(kind: str, n_walks: int) -> None:
    """Hubs of more edges than walks; rows of so many nodes that the table is refilled."""
    rng = np.random.default_rng(n_walks)
    n_nodes = 6000
    degrees = rng.geometric(0.3, n_nodes) - 1
    degrees[:3] = [5000, 2500, 1024]
    indices = np.concatenate([np.sort(rng.choice(n_nodes, degree, replace=False)) for degree in degrees])
    graph = Graph.from_arrays(
        np.concatenate([[0], np.cumsum(degrees)]), indices, weights_of(kind, rng, degrees)
    )
    assert_rows_equal(graph, np.array([0, 17, 1, 2]), FingerprintParams(n_walks=n_walks, top_k=None, seed=3))


def test_row_longer_than_the_record_can_say() -> None:
    """A degree of 2**24 or more is read from the graph. Targets repeat, to keep the rest small."""
    degree = (1 << 24) + 5
    graph = Graph(
        indptr=np.array([0, degree, degree + 1, degree + 1]),
        indices=np.append(np.arange(degree, dtype=np.int32) % 3, np.int32(0)),
        cumulative=None,
        strength=np.zeros(3),
        kind_ids=np.zeros(3, np.uint8),
        kinds=("node",),
        directed=True,
        checksum="",
    )
    assert_rows_equal(graph, np.array([0, 1]), FingerprintParams(n_walks=50, seed=1))


@pytest.mark.parametrize(
    ("degree", "restart_prob", "seed"),
    [
        pytest.param(3, 0.05, 1758, id="score above 2"),
        pytest.param(5, 0.001, 0, id="enough to push to more than twice as many edges as walks"),
    ],
)
def test_mass_above_one(degree: int, restart_prob: float, seed: int) -> None:
    """With two walks between a hub and its leaves, the mass is 1 on average but may be a multiple of it."""
    graph = Graph.from_arrays(
        np.concatenate([[0], np.arange(degree, 2 * degree + 1)]),
        np.concatenate([np.arange(1, degree + 1), np.zeros(degree, int)]),
    )
    for top_k in (1, None):
        params = FingerprintParams(restart_prob=restart_prob, n_walks=2, seed=seed, top_k=top_k)
        assert_rows_equal(graph, np.arange(degree + 1), params)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("slots", "edges", "row_space"),
    [(1, 1, 1), (1, 1 << 14, 1 << 18), (1 << 14, 1, 1 << 18), (1 << 14, 1 << 14, 300), (50, 70, 700)],
)
def test_space_that_runs_out_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, weighted: bool, slots: int, edges: int, row_space: int
) -> None:
    """Scratch and output that are too small, for nodes or for edges, are replaced by larger ones."""
    graph = random_graph(4, n_nodes=3000, degree=3.0, weighted=weighted)
    sources = np.random.default_rng(0).permutation(200).astype(np.int32)
    for n_walks in (10, 300, 5000):  # mostly single packets, splits, pushes
        params = FingerprintParams(n_walks=n_walks, top_k=None)
        expected = compute_block(graph, sources, params)
        with monkeypatch.context() as patch:
            patch.setattr(ppr.blocks, "_FIRST_SLOTS", slots)
            patch.setattr(ppr.blocks, "_FIRST_EDGES", edges)
            patch.setattr(ppr.blocks, "_FIRST_ROW_SPACE", row_space)
            assert compute_block(graph, sources, params).equals(expected)
        assert_rows_equal(graph, sources[:2], params)


@pytest.mark.long
def test_kernels_stay_within_their_arrays(tmp_path: Path) -> None:
    """The awkward cases once more, with kernels compiled to check every index."""
    awkward = "space_that_runs_out or mass_above_one or longer_than_the_record"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__, "-k", awkward],
        cwd=ROOT,
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
