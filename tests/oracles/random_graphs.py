"""Small random graphs with the awkward cases: dangling and isolated nodes, hubs, self-loops, weights."""

from __future__ import annotations

import numpy as np

from ppr.graph import Graph


def random_graph(seed: int, *, n_nodes: int = 60, degree: float = 5.0, weighted: bool = False) -> Graph:
    """Directed graph; node 0 is a hub, node 1 dangling, node 2 isolated."""
    rng = np.random.default_rng(seed)
    adjacent = rng.random((n_nodes, n_nodes)) < degree / n_nodes
    adjacent[0] = rng.random(n_nodes) < 0.8
    adjacent[1] = False
    adjacent[2], adjacent[:, 2] = False, False
    indptr = np.concatenate([[0], np.cumsum(adjacent.sum(axis=1))])
    indices = np.nonzero(adjacent)[1]
    weights = rng.lognormal(size=indices.size) if weighted else None
    return Graph.from_arrays(indptr, indices, weights)


def random_market(seed: int, *, n_users: int = 30, n_items: int = 40, degree: float = 6.0) -> Graph:
    """Undirected bipartite graph: items are nodes 0 to ``n_items`` - 1, users follow."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, n_items + 1)
    probability = degree * popularity / popularity.sum()
    likes = rng.random((n_users, n_items)) < np.minimum(probability, 0.9)
    likes[np.arange(n_users), rng.integers(n_items, size=n_users)] = True
    n_nodes = n_items + n_users
    adjacent = np.zeros((n_nodes, n_nodes), dtype=bool)
    adjacent[n_items:, :n_items] = likes
    adjacent |= adjacent.T
    return Graph.from_arrays(
        np.concatenate([[0], np.cumsum(adjacent.sum(axis=1))]),
        np.nonzero(adjacent)[1],
        kind_ids=np.repeat([0, 1], [n_items, n_users]),
        kinds=("item", "user"),
        directed=False,
    )
