"""Dense oracles: personalised PageRank by a linear solve, from the definition."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ppr.graph import Graph


def transition(graph: Graph) -> NDArray[np.float64]:
    """Transition matrix built edge by edge from the graph's arrays."""
    matrix = np.zeros((graph.n_nodes, graph.n_nodes))
    for node in range(graph.n_nodes):
        start, stop = graph.indptr[node], graph.indptr[node + 1]
        if graph.cumulative is None:
            weights = np.ones(stop - start)
        else:
            weights = np.diff(graph.cumulative[start:stop].astype(float), prepend=0.0)
        matrix[node, graph.indices[start:stop]] = weights / weights.sum() if stop > start else 0.0
    return matrix


def solve_ppr(graph: Graph, restart_prob: float) -> NDArray[np.float64]:
    """g = c (I - (1 - c) P)⁻¹ for all sources, [n, n]."""
    matrix = np.eye(graph.n_nodes) - (1 - restart_prob) * transition(graph)
    return restart_prob * np.linalg.inv(matrix)


def solve_ppr_with_returns(graph: Graph, source: int, restart_prob: float) -> NDArray[np.float64]:
    """The same for one source when dangling nodes link back to it; sums to 1."""
    matrix = transition(graph)
    dangling = matrix.sum(axis=1) == 0
    matrix[dangling, source] = 1.0
    system = np.eye(graph.n_nodes) - (1 - restart_prob) * matrix
    return restart_prob * np.linalg.solve(system.T, np.eye(graph.n_nodes)[source])


def limited_ppr(graph: Graph, restart_prob: float, max_steps: int) -> NDArray[np.float64]:
    """Walks of at most ``max_steps`` moves, all sources, [n, n]."""
    matrix = (1 - restart_prob) * transition(graph)
    walking = np.eye(graph.n_nodes)
    total = restart_prob * walking
    for _ in range(max_steps):
        walking = walking @ matrix
        total = total + restart_prob * walking
    return total


def solve_new_node(
    graph: Graph, neighbors: list[int], weights: list[float], restart_prob: float
) -> NDArray[np.float64]:
    """Normalised PageRank of a node that links into the graph and that nothing links to, over the others.

    Solved on the graph with one more node.
    """
    n_nodes = graph.n_nodes
    matrix = np.zeros((n_nodes + 1, n_nodes + 1))
    matrix[:n_nodes, :n_nodes] = transition(graph)
    np.add.at(matrix[n_nodes], neighbors, np.asarray(weights) / np.sum(weights))
    system = np.eye(n_nodes + 1) - (1 - restart_prob) * matrix
    answer = restart_prob * np.linalg.solve(system.T, np.eye(n_nodes + 1)[n_nodes])
    return answer[:n_nodes] / answer.sum()
