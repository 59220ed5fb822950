"""Small files to train a router on: two kinds of users with opposite tastes, three LLMs, two tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppr.fingerprints import FingerprintStore
from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from router.dataset import RouterFiles

LLMS = ("brief", "kind", "unused-price")
TASKS = ("code", "poems")
N_USERS, N_EVENTS = 40, 12


def events_table(seed: int = 0) -> pa.Table:
    """Users of even number want ``brief``, of odd number ``kind``; nobody much wants the third."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(N_USERS), N_EVENTS)
    tasks = rng.integers(2, size=users.size)
    wanted = np.where(rng.random(users.size) < 0.85, users % 2, rng.integers(3, size=users.size))
    words = rng.integers(6, size=users.size)
    return pa.table(
        {
            "user": [f"u{i:02d}" for i in users],
            "query": [f"{TASKS[t]} about topic {w}" for t, w in zip(tasks, words)],
            "task": [TASKS[t] for t in tasks],
            "llm": [LLMS[i] for i in wanted],
            "thumbs": pa.array(np.zeros(users.size), pa.int8()),
            "cost_usd": 0.01 * (1 + wanted),
        }
    )


def llms_table() -> pa.Table:
    """The third has no price."""
    return pa.table(
        {
            "name": LLMS,
            "description": ["short answers", "warm words", ""],
            "input_usd_per_mtok": [0.1, 0.2, None],
            "output_usd_per_mtok": [0.3, 0.6, None],
            "tokens_per_s": [90.0, 60.0, 30.0],
        }
    )


def users_table() -> pa.Table:
    """An age that tells the two kinds apart as a rule; the last user made no choice."""
    rng = np.random.default_rng(1)
    numbers = np.arange(N_USERS + 1)
    return pa.table(
        {
            "user": [f"u{i:02d}" for i in numbers],
            "age": 30.0 + 20 * (numbers % 2) + rng.normal(0, 4, numbers.size),
            "plan": [("free", "paid", "team")[i % 3] for i in numbers],
        }
    )


def user_graph() -> Graph:
    """Users and items: the two kinds go for different items; u99 has items but no choices."""
    rng = np.random.default_rng(2)
    users = [f"u{i:02d}" for i in range(N_USERS)] + ["u99"]
    n_users, n_items = len(users), 12
    edges = np.zeros((n_users + n_items, n_users + n_items))
    for user in range(n_users):
        items = rng.choice(6, size=3, replace=False) + 6 * (user % 2 if user < N_USERS else 1)
        edges[user, n_users + items] = 1 + rng.integers(3, size=3)
    edges = edges + edges.T
    rows, columns = np.nonzero(edges)
    return Graph.from_arrays(
        np.concatenate([[0], np.cumsum((edges > 0).sum(axis=1))]),
        columns,
        edges[rows, columns],
        kind_ids=[0] * n_users + [1] * n_items,
        kinds=("user", "item"),
        keys=[*users, *(f"item-{i}" for i in range(n_items))],
        directed=False,
    )


def fingerprints_of(graph: Graph, out: Path) -> FingerprintStore:
    """A small complete store."""
    return compute_fingerprints(graph, out, FingerprintParams(n_walks=500, top_k=None), threads=1)


def write_files(folder: Path, *, stores: bool = False, users: bool = False) -> RouterFiles:
    """Write the tables, and with ``stores`` the graph and its fingerprints."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"events": events_table(), "llms": llms_table(), "users": users_table()}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    graph = fingerprints = None
    if stores:
        graph, fingerprints = folder / "graph", folder / "fingerprints"
        fingerprints_of(user_graph().save(graph), fingerprints)
    return RouterFiles(
        events=folder / "events.parquet",
        llms=folder / "llms.parquet",
        users=folder / "users.parquet" if users else None,
        graph=graph,
        fingerprints=fingerprints,
    )
