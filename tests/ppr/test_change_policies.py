"""What becomes of directions, self-loops and weights in a changed graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ppr.arrays import quantise
from ppr.build import build_graph
from ppr.changes import change_graph
from ppr.inputs import EdgeInput
from ppr.kernels.changes import row_weights
from tests.oracles.naive_graph import assert_equal, naive_graph
from tests.ppr.test_changes import inputs_of, weights_of


def test_directions_of_changes(tmp_path: Path) -> None:
    """A table between nodes of one kind leads both ways where the whole graph does, unless told otherwise."""
    friends = EdgeInput(pa.table({"src": [1, 2], "dst": [2, 3]}), directed=False)
    both = build_graph(friends, tmp_path / "both")
    new = pa.table({"src": [3], "dst": [1]})
    undirected = change_graph(both, tmp_path / "undirected", added=new)
    assert (undirected.directed, undirected.n_edges) == (False, 6)
    one_way = change_graph(both, tmp_path / "one-way", added=EdgeInput(new, directed=True))
    assert (one_way.directed, one_way.n_edges) == (True, 5)
    less = EdgeInput(pa.table({"src": [1], "dst": [2]}), directed=True)
    halved = change_graph(both, tmp_path / "halved", removed=less)
    assert (halved.directed, halved.indices.tolist()) == (True, [0, 2, 1])
    follows = build_graph(pa.table({"src": [1, 2], "dst": [2, 3]}), tmp_path / "follows")
    assert change_graph(follows, tmp_path / "more", added=new).n_edges == 3


def test_edges_that_stay_while_their_opposite_goes_are_counted(tmp_path: Path) -> None:
    follows = pa.table({"src": [1, 2, 6, 7], "dst": [9, 1, 7, 6]})
    friends = EdgeInput(pa.table({"src": [1, 3, 4], "dst": [2, 4, 5]}), directed=False)
    graph = build_graph([EdgeInput(follows), friends], tmp_path / "g")
    removed = pa.table({"src": [1, 3, 1, 4, 6, 7], "dst": [2, 4, 9, 5, 7, 6]})  # 4 and 5 go with 5
    half = change_graph(graph, tmp_path / "half", removed=removed, removed_nodes=pa.table({"key": [5]}))
    assert half.manifest["counts"]["opposites_left"] == 2
    assert {(2, 1), (4, 3)} == {(src, dst) for (_, src), (_, dst) in weights_of(half)}
    both = EdgeInput(pa.table({"src": [1, 3], "dst": [2, 4]}), directed=False)
    assert change_graph(graph, tmp_path / "whole", removed=both).manifest["counts"]["opposites_left"] == 0


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("directed", [False, True])
def test_self_loops_as_in_the_graph_before(tmp_path: Path, directed: bool, keep: bool) -> None:
    def table(*rows: tuple[str, str, float]) -> list[dict[str, Any]]:
        return [{"rows": list(rows), "src_kind": "node", "dst_kind": "node", "directed": directed}]

    policy = "keep" if keep else "drop"
    before = table(("a", "a", 1.0), ("a", "b", 1.0), ("b", "b", 2.0), ("c", "c", 1.0))
    graph = build_graph(inputs_of(before), tmp_path / "before", self_loops=policy)
    # The same row stands twice in a table of edges, and d comes by a loop alone.
    added = inputs_of(table(("b", "b", 3.0), ("b", "b", 1.0), ("d", "d", 1.0), ("a", "c", 1.0)))
    removed = inputs_of(table(("a", "a", 1.0)))
    graph = change_graph(graph, tmp_path / "changed", added=added, removed=removed)
    after = table(("a", "b", 1.0), ("b", "b", 6.0), ("c", "c", 1.0), ("d", "d", 1.0), ("a", "c", 1.0))
    naive = naive_graph(before, keep_self_loops=keep)
    naive = naive_graph(after, keep_self_loops=keep, previous=naive)
    assert_equal(graph, naive)
    assert graph.manifest["parameters"]["self_loops"] == policy
    assert graph.manifest["counts"]["self_loop_rows"] == 4
    assert graph.manifest["counts"]["opposites_left"] == 0
    # The change after it follows the same policy.
    graph = change_graph(graph, tmp_path / "again", added=inputs_of(table(("a", "a", 1.0))))
    naive = naive_graph([*after, *table(("a", "a", 1.0))], keep_self_loops=keep, previous=naive)
    assert_equal(graph, naive)
    assert graph.manifest["counts"]["edges_added"] == int(keep)


@pytest.mark.parametrize(
    "weights", [[5e9, 1.0, 3.0], [1e10, 0.1, 0.9], [2.5, 1.0, 3.0], [2.0**31, 2.0**31, 7.0]]
)
def test_rows_that_are_rounded_are_counted(tmp_path: Path, weights: list[float]) -> None:
    """What a removed edge leaves is known to 2^-31 of the sum with it."""
    data = pa.table({"src": [0, 0, 0, 8, 8], "dst": [1, 2, 3, 1, 2], "weight": [*weights, 5.0, 2.0]})
    graph = build_graph(data, tmp_path / "g")
    first = pa.table({"src": [0, 8], "dst": [1, 1]})
    changed = change_graph(graph, tmp_path / "changed", removed=first)
    counts = changed.manifest["counts"]
    assert (counts["rows_changed"], counts["rows_rounded"]) == (2, 1)
    np.testing.assert_allclose(changed.weights(0), weights[1:], rtol=0, atol=2.0**-31 * sum(weights))
    assert changed.weights(changed.ids([8])[0]).tolist() == [2.0]
    other = change_graph(graph, tmp_path / "other", removed=pa.table({"src": [8], "dst": [1]}))
    assert other.manifest["counts"]["rows_rounded"] == 0
    emptied = pa.table({"src": [0, 0, 0], "dst": [1, 2, 3]})
    none = change_graph(graph, tmp_path / "none", removed=emptied)
    assert none.manifest["counts"]["rows_rounded"] == 0


def test_integers_are_exact_up_to_32_bits(tmp_path: Path) -> None:
    weights = [2.0**32 - 8, 1.0, 3.0]
    data = pa.table({"src": [0, 0, 0], "dst": [1, 2, 3], "weight": weights})
    changed = change_graph(build_graph(data, tmp_path / "g"), tmp_path / "new", removed=data.slice(0, 1))
    assert changed.manifest["counts"]["rows_rounded"] == 0
    assert changed.weights(0).tolist() == [1.0, 3.0]


def test_each_recovered_weight_is_within_its_bound() -> None:
    """Also where many light edges, rounded up, make the quantised sum far larger than it was scaled to."""
    weights = np.full(200_001, 0.6 / 2**31)
    weights[0] = 1 - weights[1:].sum()
    indptr = np.array([0, len(weights)])
    cumulative, strength = quantise(indptr, weights, len(weights))
    assert cumulative is not None
    recovered = np.empty(len(weights))
    row_weights(indptr, cumulative, strength, recovered)
    np.testing.assert_allclose(recovered, weights, rtol=0, atol=2.0**-31)
