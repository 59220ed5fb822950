"""Walk packets against the exact solver and independent walkers: unbiased, and less spread out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from ppr.blocks import compute_block
from ppr.build import build_graph
from ppr.exact import exact_ppr
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.metrics import accuracy, sample_sources
from ppr.params import FingerprintParams
from tests.oracles.naive_walker import naive_walks
from tests.oracles.random_graphs import random_graph, random_market

C = 0.15
SOURCES = np.array(
    [0, 1, 2, 7], np.int32
)  # in random_graph: a hub, a dangling node, an isolated one, any other


def skewed_graph() -> Graph:
    """Weights over five orders of magnitude."""
    graph = random_graph(5, n_nodes=60)
    return Graph.from_arrays(
        graph.indptr, graph.indices, np.random.default_rng(5).lognormal(sigma=3, size=graph.n_edges)
    )


def graph_of_small_integers() -> Graph:
    """Weights 1 to 3: cumulative weights whose bounds are often hit."""
    graph = random_graph(6, n_nodes=60)
    return Graph.from_arrays(
        graph.indptr, graph.indices, np.random.default_rng(6).integers(1, 4, graph.n_edges)
    )


def graph_with_loops() -> Graph:
    """Every node links to itself and to the next two."""
    n_nodes = 30
    rows = np.sort((np.arange(n_nodes)[:, None] + np.arange(3)) % n_nodes, axis=1)
    return Graph.from_arrays(np.arange(0, 3 * n_nodes + 1, 3), rows.ravel())


CASES = [
    pytest.param(random_graph(1), None, id="directed"),
    pytest.param(random_graph(2, weighted=True), None, id="weighted"),
    pytest.param(skewed_graph(), None, id="skewed"),
    pytest.param(graph_of_small_integers(), None, id="integers"),
    pytest.param(random_market(3), None, id="undirected"),
    pytest.param(graph_with_loops(), None, id="self-loops"),
    pytest.param(random_graph(4, weighted=True), 3, id="limited"),
]


def estimates(table: pa.Table, n_nodes: int) -> NDArray[np.float64]:
    """Scores of all nodes, float64 [rows, n]."""
    dense = np.zeros((table.num_rows, n_nodes))
    lists = table["ids"].combine_chunks()
    row = np.repeat(np.arange(table.num_rows), np.diff(lists.offsets.to_numpy()))
    dense[row, lists.values.to_numpy()] = table["scores"].combine_chunks().values.to_numpy()
    return dense


def packets(graph: Graph, n_seeds: int, n_walks: int, max_steps: int | None) -> NDArray[np.float64]:
    """Estimates for every seed, [seeds, sources, n]."""
    return np.stack(
        [
            estimates(
                compute_block(
                    graph,
                    SOURCES,
                    FingerprintParams(
                        restart_prob=C, n_walks=n_walks, top_k=None, seed=seed, max_steps=max_steps
                    ),
                ),
                graph.n_nodes,
            )
            for seed in range(n_seeds)
        ]
    )


def walkers(graph: Graph, n_seeds: int, n_walks: int, max_steps: int | None) -> NDArray[np.float64]:
    """The same by independent walkers."""
    rows = [
        naive_walks(graph, source, restart_prob=C, n_walks=n_walks, seed=seed, max_steps=max_steps)
        for seed in range(n_seeds)
        for source in SOURCES.tolist()
    ]
    return np.reshape(rows, (n_seeds, len(SOURCES), graph.n_nodes))


def truth(graph: Graph, max_steps: int | None) -> NDArray[np.float64]:
    return exact_ppr(graph, SOURCES, restart_prob=C, tol=1e-12, max_steps=max_steps)


@pytest.mark.parametrize("n_walks", [3, 20, 150])
@pytest.mark.parametrize(("graph", "max_steps"), CASES)
def test_mean_over_seeds_is_exact(graph: Graph, max_steps: int | None, n_walks: int) -> None:
    n_seeds = 400
    exact = truth(graph, max_steps)
    sample = packets(graph, n_seeds, n_walks, max_steps)
    # A node that few seeds met shows too little spread: at least that of independent visits of c / R each.
    variance = np.maximum(sample.var(axis=0, ddof=1), exact * C / n_walks)
    deviation = np.abs(sample.mean(axis=0) - exact)
    assert np.all(deviation <= 6 * np.sqrt(variance / n_seeds))
    assert np.all(sample[:, exact == 0] == 0)


@pytest.mark.parametrize(("graph", "max_steps"), CASES)
def test_packets_spread_less_than_walkers(graph: Graph, max_steps: int | None) -> None:
    """The more walks, the more of their mass is pushed exactly, and the more there is to gain."""
    n_seeds = 400
    exact = truth(graph, max_steps)
    of_one_walker = 20 * walkers(graph, n_seeds, 20, max_steps).var(axis=0, ddof=1).sum(axis=1)
    moving = exact.sum(axis=1) > C + 1e-9  # walks from a dangling node have no spread at all
    for n_walks, at_most in ((20, 1.0), (150, 0.6), (1000, 0.2)):
        variance = packets(graph, n_seeds, n_walks, max_steps).var(axis=0, ddof=1)
        assert np.all(variance.sum(axis=1)[moving] < at_most * of_one_walker[moving] / n_walks)
        assert np.all(variance[~moving] == 0)
        # Node by node, the bound of independent walks, with six standard errors of a variance.
        assert np.all(variance <= (1 + 6 * np.sqrt(2 / n_seeds)) * 2 * exact / n_walks)


@pytest.mark.parametrize(("graph", "max_steps"), CASES)
def test_naive_walkers_are_a_fair_oracle(graph: Graph, max_steps: int | None) -> None:
    n_walks = 4000
    estimate = walkers(graph, 1, n_walks, max_steps)[0]
    exact = truth(graph, max_steps)
    assert np.all(np.abs(estimate - exact) <= 6 * np.sqrt(2 * exact / n_walks) + 1e-12)


@pytest.mark.parametrize(("graph", "max_steps"), CASES)
def test_one_run_lies_within_the_margin_of_walkers(graph: Graph, max_steps: int | None) -> None:
    exact = truth(graph, max_steps)
    for n_walks in (100, 3000):
        estimate = packets(graph, 1, n_walks, max_steps)[0]
        assert np.all(np.abs(estimate - exact) <= 6 * np.sqrt(2 * exact / n_walks))


@pytest.mark.parametrize("n_walks", [1, 50, 3000])
@pytest.mark.parametrize(("graph", "max_steps"), CASES)
def test_mass_is_the_sum_of_a_full_row(graph: Graph, max_steps: int | None, n_walks: int) -> None:
    params = FingerprintParams(n_walks=n_walks, top_k=None, max_steps=max_steps)
    table = compute_block(graph, np.arange(graph.n_nodes, dtype=np.int32), params)
    total = estimates(table, graph.n_nodes).sum(axis=1)
    np.testing.assert_allclose(total, table["mass"].to_numpy(), rtol=2.0**-24)  # scores are float32


@pytest.mark.parametrize("weighted", [False, True])
def test_mass_that_is_only_pushed_is_exact(weighted: bool) -> None:
    """With many walks and few steps all mass is pushed: no spread, and no mass is lost."""
    rng = np.random.default_rng(6)
    n_nodes, degree, max_steps = 50, 4, 5
    indices = np.concatenate([np.sort(rng.choice(n_nodes, degree, replace=False)) for _ in range(n_nodes)])
    weights = rng.integers(1, 4, indices.size) if weighted else None
    graph = Graph.from_arrays(np.arange(0, n_nodes * degree + 1, degree), indices, weights)
    sources = np.arange(n_nodes, dtype=np.int32)
    params = FingerprintParams(
        restart_prob=0.25, n_walks=1 << 24, top_k=None, max_steps=max_steps  # 0.25 is exact in binary
    )  # fmt: skip
    table = compute_block(graph, sources, params)
    rounding = n_nodes * max_steps * 2.0**-40
    exact = exact_ppr(graph, sources, restart_prob=0.25, tol=1e-14, max_steps=max_steps)
    np.testing.assert_allclose(estimates(table, n_nodes), exact, rtol=2.0**-24, atol=rounding)
    np.testing.assert_allclose(table["mass"].to_numpy(), 1 - 0.75 ** (max_steps + 1), rtol=0, atol=rounding)
    steps_with_moves = exact_ppr(graph, sources, restart_prob=0.25, tol=1e-14, max_steps=max_steps - 1) > 0
    assert np.all(table["moves"].to_numpy() >= degree * steps_with_moves.sum(axis=1))


@pytest.mark.parametrize("n_walks", [1, 3000])
@pytest.mark.parametrize("source", [1, 2])
def test_dangling_and_isolated_sources_keep_only_themselves(source: int, n_walks: int) -> None:
    params = FingerprintParams(restart_prob=0.25, n_walks=n_walks)
    (row,) = compute_block(random_graph(1), np.array([source], np.int32), params).to_pylist()
    assert row == {"source": source, "ids": [source], "scores": [0.25], "mass": 0.25, "moves": 0}


def test_seeds_differ_and_repeat() -> None:
    graph = random_graph(1)
    first, second, again = (
        compute_block(graph, SOURCES, FingerprintParams(n_walks=50, seed=seed)) for seed in (1, 2, 1)
    )
    assert first.equals(again)
    assert not first["scores"].equals(second["scores"])


def measured_accuracy(graph: Graph, *, per_bucket: int, tol: float) -> dict[str, float]:
    """The accuracy protocol for rows of 3000 walks."""
    sources = sample_sources(graph, per_bucket=per_bucket)
    exact = exact_ppr(graph, sources, restart_prob=C, tol=tol)
    rows = compute_block(graph, sources, FingerprintParams(restart_prob=C, n_walks=3000))["ids"].to_pylist()
    ranked = np.full((len(rows), 200), -1)
    for i, row in enumerate(rows):
        ranked[i, : len(row)] = row
    return accuracy(exact, ranked, sources)


def test_accuracy_on_wiki_vote(shared_data: Path, tmp_path: Path) -> None:
    edges = EdgeInput(shared_data / "graphs" / "wiki-Vote.txt.gz", header=False)
    measured = measured_accuracy(build_graph(edges, tmp_path / "graph"), per_bucket=10, tol=1e-10)
    assert measured["rag@50"] >= 0.985
    assert measured["precision@10"] >= 0.84


def test_accuracy_on_ego_twitter(shared_data: Path, tmp_path: Path) -> None:
    """On a part of the protocol's sources."""
    edges = EdgeInput(shared_data / "graphs" / "ego-twitter.tsv.gz", header=False, directed=False)
    measured = measured_accuracy(build_graph(edges, tmp_path / "graph"), per_bucket=2, tol=1e-7)
    assert measured["rag@50"] >= 0.985
    assert measured["precision@10"] >= 0.84
