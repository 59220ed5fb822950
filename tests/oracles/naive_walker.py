"""The obvious Monte Carlo estimator: one walker at a time, every visit counts."""

from __future__ import annotations

import random
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from ppr.graph import Graph


def naive_walks(
    graph: Graph,
    source: int,
    *,
    restart_prob: float,
    n_walks: int,
    seed: int,
    max_steps: int | None = None,
) -> NDArray[np.float64]:
    """Estimate c * visits / R of every node, float64 [n]; a walk ends at a dangling node."""
    chance = random.Random(seed)
    indptr, indices = graph.indptr.tolist(), graph.indices.tolist()
    cumulative = None if graph.cumulative is None else graph.cumulative.tolist()
    visits = [0] * graph.n_nodes
    for _ in range(n_walks):
        node, step = source, 0
        visits[node] += 1
        while chance.random() >= restart_prob and step != max_steps:
            begin, end = indptr[node], indptr[node + 1]
            if begin == end:
                break
            if cumulative is None:
                edge = chance.randrange(begin, end)
            else:
                edge = bisect_right(cumulative, chance.randrange(cumulative[end - 1]), begin, end)
            node, step = indices[edge], step + 1
            visits[node] += 1
    return restart_prob * np.array(visits) / n_walks
