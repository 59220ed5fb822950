"""Job: the nodes nearest to one node, or to a new node given by its edges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.keys import ids_of, parse_edge, read_edges
from jobs.settings import QuerySettings, Settings
from ppr.answers import rank_answers
from ppr.exact import exact_answers, exact_answers_edges
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.verd import query, query_edges

Ids = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: about the node ``key``, or about a new node with these edges.

    Parameters
    ----------
    key, kind
        Key of a node of the graph, and its kind where the key alone does not tell.
    edges
        Edges of a new node, as ``KEY`` or ``KEY:WEIGHT``.
    edges_file
        File of further edges, a line ``key`` or ``key,weight`` each.
    edge_kind
        Kind of the nodes that the edges lead to.
    """

    key: str | None
    kind: str | None
    edges: list[str]
    edges_file: Path | None
    edge_kind: str | None


def run(
    graph_path: Path, fingerprints: Path | None, question: Question, settings: Settings
) -> dict[str, Any]:
    """Answer from the fingerprints, or exactly where none are given.

    Returns
    -------
    dict
        The node asked about, how it was answered, and the ``nearest`` nodes, best first, without the node
        itself. Scores are shares of the normalised personalised PageRank.
    """
    graph = Graph.open(graph_path)
    if fingerprints is None:
        store, restart_prob = None, settings.fingerprints.restart_prob
        how: dict[str, Any] = {"method": "exact"}
    else:
        store = FingerprintStore.open(fingerprints, graph=graph)
        restart_prob = store.params.restart_prob
        how = {"method": "verd", "steps": settings.query.steps}
    if question.key is None:
        about, ids, scores = _ask_new(graph, store, restart_prob, question, settings.query)
    else:
        about, ids, scores = _ask(graph, store, restart_prob, question, settings.query)
    nodes = zip(describe(graph, ids), scores.tolist(), strict=True)
    nearest = [node | {"score": score} for node, score in nodes]
    return {"node": about, **how, "restart_prob": restart_prob, "nearest": nearest}


def describe(graph: Graph, ids: Ids) -> list[dict[str, Any]]:
    """Kind and key of nodes, as results print them."""
    keys = graph.keys(ids).tolist()
    return [{"kind": graph.kinds[graph.kind_ids[i]], "key": key} for i, key in zip(ids, keys, strict=True)]


def _ask(
    graph: Graph, store: FingerprintStore | None, restart_prob: float, question: Question, how: QuerySettings
) -> tuple[dict[str, Any], Ids, Scores]:
    node = ids_of(graph, [str(question.key)], question.kind)
    if store is None:
        found = rank_answers(
            lambda ids: exact_answers(graph, ids, restart_prob=restart_prob), node.tolist(), how.k + 1
        )
    else:
        found = query(graph, store, node, steps=how.steps, epsilon=how.epsilon, k=how.k + 1)
    others = (found[0] >= 0) & (found[0] != node)
    return describe(graph, node)[0], found[0][others][: how.k], found[1][others][: how.k]


def _ask_new(
    graph: Graph, store: FingerprintStore | None, restart_prob: float, question: Question, how: QuerySettings
) -> tuple[dict[str, Any], Ids, Scores]:
    pairs = [parse_edge(text) for text in question.edges]
    if question.edges_file is not None:
        pairs += read_edges(question.edges_file)
    keys, weights = zip(*pairs, strict=True)
    edges = [(ids_of(graph, keys, question.edge_kind), np.array(weights))]
    if store is None:
        found = rank_answers(
            lambda new: exact_answers_edges(graph, new, restart_prob=restart_prob), edges, how.k
        )
    else:
        found = query_edges(graph, store, edges, steps=how.steps, epsilon=how.epsilon, k=how.k)
    there = found[0] >= 0
    return {"new": True, "edges": len(pairs)}, found[0][there], found[1][there]
