"""The obvious slow graph builder: dictionaries and one edge at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ppr.graph import Graph

Key = int | str


@dataclass(frozen=True)
class NaiveGraph:
    """Nodes in the order of their ids, and each node's out-edges by ascending id."""

    nodes: list[tuple[str, Key | None]]  # None: removed
    rows: list[list[tuple[int, float]]]  # (neighbour, weight)
    kinds: list[str]

    @property
    def removed(self) -> list[int]:
        return [node for node, (_, key) in enumerate(self.nodes) if key is None]

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1.0 for row in self.rows for _, weight in row)

    def strength(self, node: int) -> float:
        return left_to_right(weight for _, weight in self.rows[node])

    def quantised(self, node: int) -> list[int]:
        """Integer weights of a row: as they are if they are small integers, else scaled to 2**31."""
        weights = [weight for _, weight in self.rows[node]]
        total = self.strength(node)
        if all(weight.is_integer() for weight in weights) and total < 2**32:
            return [int(weight) for weight in weights]
        return [max(1, round(Fraction(weight / total) * 2**31)) for weight in weights]


def naive_graph(
    tables: Iterable[dict[str, Any]],
    nodes: Iterable[tuple[str, Key]] = (),
    *,
    keep_self_loops: bool = False,
    previous: NaiveGraph | None = None,
) -> NaiveGraph:
    """Build from tables ``{"rows": [(src, dst, weight)], "src_kind", "dst_kind", "directed"}``.

    Nodes of ``previous`` keep their ids, and lose their keys where no row names them.
    """
    tables = list(tables)
    named = set(nodes)
    for table in tables:
        for src, dst, _ in table["rows"]:
            named |= {(table["src_kind"], src), (table["dst_kind"], dst)}
    before = [] if previous is None else previous.nodes
    ordered = [node if node in named else (node[0], None) for node in before]
    ordered += sorted(named - set(before), key=_order)
    number = {node: i for i, node in enumerate(ordered)}
    kinds = [] if previous is None else list(previous.kinds)
    kinds += sorted({kind for kind, _ in named} - set(kinds), key=str.encode)

    parallel: dict[tuple[int, int], list[float]] = defaultdict(list)
    for table in tables:
        for src, dst, weight in table["rows"]:
            edge = number[table["src_kind"], src], number[table["dst_kind"], dst]
            if edge[0] == edge[1] and not keep_self_loops:
                continue
            parallel[edge].append(weight)
            if not table["directed"] and edge[0] != edge[1]:
                parallel[edge[1], edge[0]].append(weight)

    rows: list[list[tuple[int, float]]] = [[] for _ in ordered]
    for (src, dst), weights in sorted(parallel.items()):
        rows[src].append((dst, left_to_right(sorted(weights))))
    return NaiveGraph(ordered, rows, kinds)


def assert_equal(graph: Graph, naive: NaiveGraph) -> None:
    """Compare every array of the graph with the oracle, bit for bit."""
    assert graph.n_nodes == len(naive.nodes)
    assert graph.kinds == tuple(naive.kinds)
    blank = 0 if graph.nodes.is_integer else ""
    kinds = [graph.kinds[kind] for kind in graph.kind_ids]
    assert list(zip(kinds, graph.nodes.keys.to_pylist(), strict=True)) == [
        (kind, blank if key is None else key) for kind, key in naive.nodes
    ]
    assert graph.removed.tolist() == naive.removed
    live = [node for node in range(graph.n_nodes) if node not in naive.removed]
    assert graph.live.tolist() == live
    assert graph.keys(live).tolist() == [naive.nodes[node][1] for node in live]
    assert graph.weighted == naive.is_weighted
    for node, row in enumerate(naive.rows):
        start, end = graph.indptr[node], graph.indptr[node + 1]
        assert graph.indices[start:end].tolist() == [neighbour for neighbour, _ in row]
        assert graph.strength[node] == naive.strength(node)
        if graph.cumulative is not None:
            assert np.diff(
                graph.cumulative[start:end].astype(np.int64), prepend=0
            ).tolist() == naive.quantised(node)


def left_to_right(values: Iterable[float]) -> float:
    """Plain float addition; ``sum`` compensates its rounding since Python 3.12."""
    total = 0.0
    for value in values:
        total += value
    return total


def _order(node: tuple[str, Key]) -> tuple[bytes, int | bytes]:
    kind, key = node
    return kind.encode(), key if isinstance(key, int) else key.encode()
