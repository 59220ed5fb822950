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


def changed_transition(old: Graph, new: Graph) -> NDArray[np.float64]:
    """Distance of each old node's old and new row of transitions, [old n]."""
    before, after = np.zeros((old.n_nodes, new.n_nodes)), transition(new)[: old.n_nodes]
    before[:, : old.n_nodes] = transition(old)
    distance: NDArray[np.float64] = np.abs(after - before).sum(axis=1)
    return distance


def refresh_bounds(old: Graph, new: Graph, restart_prob: float, max_steps: int | None) -> NDArray[np.float64]:
    """How far a fingerprint of each old node can move, [old n]: the sum over the step that meets a change."""
    keep = 1 - restart_prob
    expected = changed_transition(old, new)
    if max_steps is None:
        return keep / restart_prob * solve_ppr(old, restart_prob) @ expected
    bound = np.zeros(old.n_nodes)
    for step in range(max_steps):
        later = sum(keep**t for t in range(step + 1, max_steps + 1))
        bound += restart_prob * later * expected
        expected = transition(old) @ expected
    return bound
