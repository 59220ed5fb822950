"""Recommendations on Gowalla (LightGCN's split) through the Spark job, parameters chosen on training data.

A fifth of each user's training interactions, about the share of the test split, is held out to choose by; the
test split is looked at once, with the choice made. Choosing uses the local engine, which gives the same rows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from datasets import shared_file
from harness import RESULTS, Figure, at_least, at_most, check, note, run_alone
from numpy.typing import NDArray

from jobs.held_out import read_held_out
from jobs.keys import find_ids
from jobs.spark_session import spark_session
from jobs.splits import split_at_random
from ppr.build import build_graph
from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.inputs import EdgeInput
from ppr.local import compute_fingerprints
from ppr.metrics import HeldOut, ndcg_at_k, recall_at_k
from ppr.params import FingerprintParams
from ppr.recommend import recommend
from ppr.spark import compute_fingerprints_spark

K = 20
TRAIN = "gowalla/s_adj_mat.npz"
N_USERS = 29_858
THREADS = 2
VALIDATION = 0.2
KEPT = 500  # candidates per user, which the popularity discount ranks again
RESTART_PROBS = (0.02, 0.15)
N_WALKS = (10_000, 30_000)
DISCOUNTS = (0.0, 0.05, 0.1, 0.15, 0.2)


def measure() -> list[Figure]:
    """Build, choose, run and evaluate."""
    started = time.perf_counter()
    interactions = _interactions()
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        figures = list(_figures(interactions, Path(folder)))
    return [*figures, at_most("the whole run, choosing included", time.perf_counter() - started, 240, "s")]


def _interactions() -> pa.Table:
    """Read the training split: users and items, numbered from 0 each."""
    adjacency = sp.load_npz(shared_file(TRAIN)).tocoo()
    of_user = adjacency.row < N_USERS
    return pa.table({"user": adjacency.row[of_user], "item": adjacency.col[of_user] - N_USERS})


def _figures(interactions: pa.Table, folder: Path) -> Iterator[Figure]:
    params, discount, validation = _choose(interactions, folder)
    graph = _build(interactions, folder / "graph")
    test = read_held_out(shared_file("gowalla/test.txt.gz"), graph)
    users, held_out = _held_out(graph, test.users.to_numpy(), test.items.to_numpy())
    check(len(users) == N_USERS, "users of the test split")
    session = spark_session(master=f"local[{THREADS}]", app_name="fairpath-bench")
    try:
        assert graph.path is not None
        store = compute_fingerprints_spark(session, graph.path, folder / "rows", params, sources=users)
    finally:
        session.stop()
    recall, ndcg = _quality(graph, store, users, held_out, discount)
    yield at_least(f"test split: Recall@{K}", recall, 0.186)
    yield at_least(f"test split: NDCG@{K}", ndcg, 0.156)
    yield note(f"validation split: Recall@{K}", validation)
    yield note("chosen: restart probability", params.restart_prob)
    yield note("chosen: walks per user", params.n_walks)
    yield note("chosen: popularity discount β", discount)


def _choose(interactions: pa.Table, folder: Path) -> tuple[FingerprintParams, float, float]:
    """Take the parameters of the best recall on the validation split; returns them with that recall."""
    train, validation = split_at_random(interactions, test_fraction=VALIDATION, seed=0)
    graph = _build(train, folder / "train")
    users, held_out = _held_out(graph, validation["user"].to_numpy(), validation["item"].to_numpy())
    best = None
    for i, (restart_prob, n_walks) in enumerate(product(RESTART_PROBS, N_WALKS)):
        params = FingerprintParams(
            restart_prob=restart_prob,
            n_walks=n_walks,
            top_k=KEPT,
            max_steps=3,
            target_kinds=("item",),
            exclude_neighbors=True,
        )
        store = compute_fingerprints(graph, folder / f"try-{i}", params, sources=users, threads=THREADS)
        for discount in DISCOUNTS:
            recall, _ = _quality(graph, store, users, held_out, discount)
            if best is None or recall > best[2]:
                best = params, discount, recall
    assert best is not None
    return best


def _build(interactions: pa.Table, folder: Path) -> Graph:
    return build_graph(EdgeInput(interactions), folder)


def _held_out(
    graph: Graph, user_keys: NDArray[np.int64], item_keys: NDArray[np.int64]
) -> tuple[NDArray[np.int32], HeldOut]:
    """Users with held-out items that the graph knows, and those items."""
    items = find_ids(graph, pa.array(item_keys), ("item",))
    users = graph.ids(user_keys, "user")[items >= 0]
    order = np.argsort(users, kind="stable")
    found, counts = np.unique(users, return_counts=True)
    return found, HeldOut(np.concatenate([[0], np.cumsum(counts)]), items[items >= 0][order])


def _quality(
    graph: Graph, store: FingerprintStore, users: NDArray[np.int32], held_out: HeldOut, discount: float
) -> tuple[float, float]:
    """Mean Recall@20 and NDCG@20."""
    ids, _ = recommend(graph, store, users, K, popularity_discount=discount, threads=THREADS)
    recall, ndcg = (metric(ids, held_out, K) for metric in (recall_at_k, ndcg_at_k))
    return float(np.nanmean(recall)), float(np.nanmean(ndcg))


if __name__ == "__main__":
    run_alone("gowalla", measure)
