"""Job: recommendations against held-out interactions, and rows against the exact solver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.held_out import Interactions, read_held_out
from jobs.keys import find_ids
from jobs.settings import Settings
from ppr.errors import DataError, ParameterError
from ppr.exact import exact_ppr
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.metrics import HeldOut, accuracy, ndcg_at_k, recall_at_k, sample_sources
from ppr.recommend import recommend
from ppr.verd import query

_BUCKETS = 10
_RANKS = (10, 50, 200)


def run(
    graph_path: Path, fingerprints: Path, settings: Settings, *, test: Path | None = None
) -> dict[str, Any]:
    """Measure what is asked for.

    Parameters
    ----------
    graph_path, fingerprints
        The stores.
    settings
        How to recommend, and how many sources to compare with the exact solver (0 for none).
    test
        Held-out interactions, or None.

    Returns
    -------
    dict
        ``ranking``: Recall@k and NDCG@k of the recommendations and of the popularity baseline.
        ``accuracy``: RAG@k and precision@k of the stored rows, and of composed answers where rows compose.
    """
    graph = Graph.open(graph_path)
    store = FingerprintStore.open(fingerprints, graph=graph)
    result: dict[str, Any] = {}
    if test is not None:
        result["ranking"] = _ranking(graph, store, settings, read_held_out(test, graph))
    if settings.evaluate.exact_sample:
        result["accuracy"] = _accuracy(graph, store, settings)
    return result


def most_popular(
    graph: Graph, users: npt.ArrayLike, k: int, *, kinds: Sequence[str] = ("item",)
) -> npt.NDArray[np.int32]:
    """Rank the unseen nodes of some kinds by in-degree: the baseline that a recommender must beat.

    Parameters
    ----------
    graph
        Where degrees and what was seen come from.
    users
        Nodes, int [b]; -1: someone who has seen nothing.
    k
        Length of the lists.
    kinds
        What is ranked.

    Returns
    -------
    int32 [b, k]
        Best first, ties by ascending id; padded with -1.
    """
    in_degree = np.bincount(graph.indices, minlength=graph.n_nodes)
    candidates = np.concatenate([graph.nodes_of_kind(kind) for kind in kinds])
    candidates = candidates[np.lexsort((candidates, -in_degree[candidates]))]
    rows = np.asarray(users, dtype=np.int64).reshape(-1)
    ranked = np.full((len(rows), k), -1, dtype=np.int32)
    for row, user in enumerate(rows):
        seen = graph.indices[graph.indptr[user] : graph.indptr[user + 1] if user >= 0 else 0]
        first = candidates[: k + len(seen) + 1]
        unseen = first[~np.isin(first, seen) & (first != user)][:k]
        ranked[row, : len(unseen)] = unseen
    return ranked


def _ranking(graph: Graph, store: FingerprintStore, settings: Settings, test: Interactions) -> dict[str, Any]:
    """Recall and NDCG over the users of the test split.

    Users and items that the graph does not know are left out, as are items that a user has in the graph when
    these are not recommended; all of them are counted.
    """
    chosen = settings.recommend
    user_ids = find_ids(graph, test.users, (chosen.user_kind,))
    item_ids = find_ids(graph, test.items, chosen.kinds)
    known = (user_ids >= 0) & (item_ids >= 0)
    pairs = np.unique(user_ids[known].astype(np.int64) * graph.n_nodes + item_ids[known])
    n_known = len(pairs)
    if chosen.exclude_seen:
        pairs = pairs[~np.isin(pairs, _edge_pairs(graph))]
    if not len(pairs):
        raise DataError(f"{test.name}: no {chosen.user_kind} of the graph went for an item that could be hit")
    users, counts = np.unique(pairs // graph.n_nodes, return_counts=True)
    held_out = HeldOut(np.concatenate([[0], np.cumsum(counts)]), pairs % graph.n_nodes)
    ids, _ = recommend(graph, store, users, **chosen.model_dump(exclude={"user_kind"}))
    popular = most_popular(graph, users, chosen.k, kinds=chosen.kinds)
    return {
        "users": len(users),
        "held_out": len(pairs),
        "already_seen": n_known - len(pairs),
        "unknown_users": len(test.users.filter(pa.array(user_ids < 0)).unique()),
        "unknown_items": len(test.items.filter(pa.array(item_ids < 0)).unique()),
        "recommended": _metrics(ids, held_out, chosen.k),
        "most_popular": _metrics(popular, held_out, chosen.k),
    }


def _edge_pairs(graph: Graph) -> npt.NDArray[np.int64]:
    """Source and destination of every edge as one number, int64 [m]."""
    sources = np.repeat(np.arange(graph.n_nodes), graph.out_degree)
    return sources * graph.n_nodes + graph.indices


def _metrics(ranked: npt.NDArray[np.int32], held_out: HeldOut, k: int) -> dict[str, float]:
    return {
        f"recall@{k}": float(np.nanmean(recall_at_k(ranked, held_out, k))),
        f"ndcg@{k}": float(np.nanmean(ndcg_at_k(ranked, held_out, k))),
    }


def _accuracy(graph: Graph, store: FingerprintStore, settings: Settings) -> dict[str, Any]:
    params = store.params
    if params.target_kinds or params.exclude_neighbors:
        raise ParameterError(
            f"{store.path}: has no exact counterpart, since its rows leave out nodes "
            "('target_kinds' or 'exclude_neighbors')"
        )
    wanted = settings.evaluate.exact_sample
    seed = settings.evaluate.seed
    sample = sample_sources(graph, per_bucket=-(-wanted // _BUCKETS), n_buckets=_BUCKETS, seed=seed)
    sources = np.sort(np.random.default_rng(seed).permutation(sample)[:wanted])
    truth = exact_ppr(graph, sources, restart_prob=params.restart_prob, max_steps=params.max_steps)
    ks = [k for k in _RANKS if params.top_k is None or k <= params.top_k]
    width = max(_RANKS) + 1
    result: dict[str, Any] = {
        "sources": len(sources),
        "rows": accuracy(truth, _stored(store, sources, width), sources, ks=ks),
    }
    if store.composable:
        how = settings.query.model_dump(exclude={"k"})
        composed, _ = query(graph, store, sources, k=width, **how)
        result["composed"] = {"steps": settings.query.steps} | accuracy(truth, composed, sources, ks=_RANKS)
    return result


def _stored(store: FingerprintStore, sources: npt.NDArray[np.int32], width: int) -> npt.NDArray[np.int32]:
    ranked = np.full((len(sources), width), -1, dtype=np.int32)
    for row, source in enumerate(sources):
        ids = store.row(int(source))[0][:width]
        ranked[row, : len(ids)] = ids
    return ranked
