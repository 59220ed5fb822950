"""How good the demo's recommendations are: against popularity, and against the truth where it is planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.demo_data import expected_shares
from ppr.errors import DataError
from ppr.graph import Graph
from ppr.metrics import HeldOut, ndcg_at_k, recall_at_k, top_k_ids

Truth = Mapping[str, npt.NDArray[Any]]
Quality = dict[str, dict[str, float]]  # method to metric to value
_CHUNK_USERS = 512  # rows of dense scores held at a time


@dataclass(frozen=True, slots=True)
class TestPart:
    """What users went for after the training part.

    Parameters
    ----------
    users
        int32 [b], ascending: users of the graph who went for at least one item that was new to them.
    held_out
        Those items. Items that the training part does not know cannot be recommended and are left out.
    """

    __test__ = False  # not a test class, whatever pytest makes of the name

    users: npt.NDArray[np.int32]
    held_out: HeldOut

    @classmethod
    def from_table(cls, graph: Graph, table: pa.Table) -> TestPart:
        """Translate a table ``(user, item, …)``.

        Raises
        ------
        DataError
            Nobody is left.
        """
        users, items = (_ids(graph, table[column], column) for column in ("user", "item"))
        known = (users >= 0) & (items >= 0)
        pairs = np.unique(users[known] * graph.n_nodes + items[known])
        sources = np.repeat(np.arange(graph.n_nodes), graph.out_degree)
        pairs = pairs[~np.isin(pairs, sources * graph.n_nodes + graph.indices)]
        if not len(pairs):
            raise DataError("the test part holds no new item of a user of the training part")
        distinct, counts = np.unique(pairs // graph.n_nodes, return_counts=True)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        return cls(distinct.astype(np.int32), HeldOut(indptr, pairs % graph.n_nodes))

    def items(self, row: int) -> set[int]:
        """Held-out items of one user, by position."""
        bounds = self.held_out.indptr
        return set(self.held_out.ids[bounds[row] : bounds[row + 1]].tolist())


def ranking_quality(ranked: npt.NDArray[np.int32], test: TestPart, k: int) -> dict[str, float]:
    """Mean Recall@k and NDCG@k over the users of the test part."""
    return {
        f"Recall@{k}": float(np.nanmean(recall_at_k(ranked, test.held_out, k))),
        f"NDCG@{k}": float(np.nanmean(ndcg_at_k(ranked, test.held_out, k))),
    }


def echo_quality(title: str, quality: Quality, echo: Callable[[str], None]) -> None:
    """Print a table, one line per method."""
    metrics = list(next(iter(quality.values())))
    echo(f"\n{title}")
    widths = {metric: max(15, len(metric) + 2) for metric in metrics}
    echo(" " * 28 + "".join(f"{metric:>{width}}" for metric, width in widths.items()))
    for label, values in quality.items():
        echo(f"  {label:<26}" + "".join(f"{values[metric]:>{width}.3f}" for metric, width in widths.items()))


def planted_quality(
    graph: Graph, truth: Truth, test: TestPart, rankings: Mapping[str, npt.NDArray[np.int32]], k: int
) -> tuple[npt.NDArray[np.int32], dict[str, float]]:
    """Compare rankings with the planted probabilities of each user's next event, seen items left out.

    Parameters
    ----------
    graph, truth
        The training graph and the market's truth.
    test
        The users.
    rankings
        By label, int32 [b, k] or wider, padded with -1.
    k
        Rank at which lists are cut.

    Returns
    -------
    best : int32 [b, k]
        The best possible ranking by the planted probabilities.
    shares
        By label, the planted probability of the k ranked items over that of the k best, mean over users.
    """
    best = np.full((len(test.users), k), -1, dtype=np.int32)
    sums = dict.fromkeys(rankings, 0.0)
    for start in range(0, len(test.users), _CHUNK_USERS):
        rows = slice(start, start + _CHUNK_USERS)
        scores = _planted_scores(graph, truth, test.users[rows])
        best[rows] = top_k_ids(scores, k)
        possible = _total(scores, best[rows])
        for label, ranked in rankings.items():
            sums[label] += float((_total(scores, ranked[rows, :k]) / possible).sum())
    return best, {label: total / len(test.users) for label, total in sums.items()}


def _planted_scores(graph: Graph, truth: Truth, users: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Planted probability that a user's next event is at a node, ``[b, n]``; 0 for what was seen."""
    items = graph.nodes_of_kind("item")
    rows = _positions(truth["users"], graph.keys(users))
    columns = _positions(truth["items"], graph.keys(items))
    chosen = {"taste": truth["taste"][rows], "item_category": truth["item_category"][columns]}
    scores = np.zeros((len(users), graph.n_nodes))
    scores[:, items] = expected_shares({**chosen, "popularity": truth["popularity"][columns]})
    for row, user in enumerate(users):
        scores[row, graph.indices[graph.indptr[user] : graph.indptr[user + 1]]] = 0.0
    return scores


def _total(scores: npt.NDArray[np.float64], ranked: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Sum of the scores of each row's ranked nodes."""
    found = np.take_along_axis(scores, np.maximum(ranked, 0).astype(np.int64), axis=1)
    total: npt.NDArray[np.float64] = np.where(ranked >= 0, found, 0.0).sum(axis=1)
    return total


def _ids(graph: Graph, keys: pa.ChunkedArray, kind: str) -> npt.NDArray[np.int64]:
    """Dense ids of keys, -1 where the graph does not know them."""
    nodes = graph.nodes_of_kind(kind)
    there = pa.array(graph.keys(nodes)).cast(keys.type)
    position = pc.fill_null(pc.index_in(keys, value_set=there), -1).to_numpy()
    return np.where(position >= 0, nodes[position], -1).astype(np.int64)


def _positions(names: npt.NDArray[Any], keys: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Position of each key among the names."""
    position: npt.NDArray[np.int64] = pc.index_in(
        pa.array(keys, pa.string()), value_set=pa.array(names, pa.string())
    ).to_numpy()
    return position
