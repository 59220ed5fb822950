"""Held-out interactions: how well two releases rank the items that users went for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.evaluate import most_popular
from jobs.pipeline.evaluation_figures import CANDIDATE, POPULARITY, activity_groups, compare
from ppr.metrics import HeldOut, ndcg_at_k, recall_at_k
from router.bundle import ITEM, USER
from router.service.serving import Serving

Lists = Sequence[Sequence[str]]


def judge_items(
    served: Mapping[str, Serving],
    held_out: Path | None,
    *,
    k: int,
    max_users: int,
    seed: int,
    tell: Callable[[str], None],
) -> dict[str, Any] | None:
    """Judge releases by the same interactions; None where there is none, or the candidate ranks no items.

    Parameters
    ----------
    served
        ``candidate`` and perhaps ``current``.
    held_out
        Columns ``user`` and ``item``, or None.
    k, max_users, seed, tell
        As for :func:`~jobs.pipeline.evaluation.evaluate`, where the result is described, too.
    """
    if not served[CANDIDATE].has_items or (wanted := _read(held_out)) is None:
        return None
    rankers = {name: serving for name, serving in served.items() if serving.has_items}
    everybody = sorted(wanted)
    sample = np.random.default_rng(seed).permutation(len(everybody))[:max_users]
    users = [everybody[i] for i in np.sort(sample).tolist()]
    left_out = {
        "beyond_the_sample": sum(len(items) for items in wanted.values())
        - sum(len(wanted[user]) for user in users),
        "unknown_items": 0,
    } | {f"seen_by_{name}": 0 for name in served}
    seen = {name: {user: _seen(serving, user) for user in users} for name, serving in served.items()}
    asked: dict[str, list[str]] = {}
    for user in users:
        kept = []
        for item in sorted(wanted[user]):
            knows = next((name for name in served if item in seen[name][user]), None)
            if knows is not None:
                left_out[f"seen_by_{knows}"] += 1
            elif not any(_knows(serving, item) for serving in rankers.values()):
                left_out["unknown_items"] += 1
            else:
                kept.append(item)
        if kept:
            asked[user] = kept
    if not asked:
        return None
    users = list(asked)
    tell(f"items: {sum(map(len, asked.values())):,} held out, of {len(users):,} users")
    lists: dict[str, Lists] = {
        name: [[item for item, _ in serving.recommend(user, None, k)] for user in users]
        for name, serving in rankers.items()
    }
    lists[POPULARITY] = _popular(served[CANDIDATE], users, k)
    history = [len(seen[CANDIDATE][user]) for user in users]
    groups = activity_groups(history)
    ranked, truth = _numbered(lists, [asked[user] for user in users], k)
    measures = {"ndcg": ndcg_at_k, "recall": recall_at_k}
    return {
        "rows": sum(map(len, asked.values())),
        "users": len(users),
        "left_out": left_out,
        "unknown_users": {
            name: sum(not serving.knows(user) for user in users) for name, serving in served.items()
        },
        "metrics": {
            metric: compare({name: measure(ids, truth, k) for name, ids in ranked.items()}, groups, seed=seed)
            for metric, measure in measures.items()
        },
    }


def _read(path: Path | None) -> dict[str, set[str]] | None:
    """Items by user, both as text; None where there are no rows."""
    if path is None:
        return None
    table = pq.read_table(path, columns=["user", "item"])
    items: dict[str, set[str]] = defaultdict(set)
    columns = (table[name].cast(pa.large_string()).to_pylist() for name in ("user", "item"))
    for user, item in zip(*columns, strict=True):
        items[user].add(item)
    return items or None


def _seen(serving: Serving, user: str) -> set[str]:
    """Items that the release's graph has of a user."""
    surroundings, key = serving.surroundings, serving.graph_key(user)
    if surroundings is None or key is None or (node := surroundings.node(USER, key)) is None:
        return set()
    return set(map(str, surroundings.by_key(*surroundings.items(node))))


def _knows(serving: Serving, item: str) -> bool:
    key = serving.bundle_key(ITEM, item)
    return key is not None and serving.scorer.bundle.row(ITEM, key) >= 0


def _popular(candidate: Serving, users: Sequence[str], k: int) -> list[list[str]]:
    """Most popular items of the candidate's graph that a user does not have."""
    assert candidate.surroundings is not None  # a candidate has a graph
    graph = candidate.surroundings.graph
    keys = [candidate.graph_key(user) for user in users]
    nodes = [None if key is None else candidate.surroundings.node(USER, key) for key in keys]
    ranked = most_popular(graph, [-1 if node is None else node for node in nodes], k)
    return [[str(key) for key in graph.keys(ids[ids >= 0]).tolist()] for ids in ranked]


def _numbered(
    lists: Mapping[str, Lists], asked: Lists, k: int
) -> tuple[dict[str, NDArray[np.int64]], HeldOut]:
    """Lists and held-out items as numbers: int64 [u, k], padded with -1."""
    numbers: dict[str, int] = {}

    def number(items: Sequence[str]) -> list[int]:
        return [numbers.setdefault(item, len(numbers)) for item in items]

    truth = HeldOut.from_lists([number(items) for items in asked])
    ranked = {}
    for name, of_users in lists.items():
        ranked[name] = np.full((len(of_users), k), -1, dtype=np.int64)
        for row, items in zip(ranked[name], of_users, strict=True):
            row[: len(items)] = number(items)
    return ranked, truth
