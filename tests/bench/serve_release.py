"""Releases of random numbers, of the size of real ones: what a service's times depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ppr.graph import Graph
from ppr.local import compute_fingerprints
from ppr.params import FingerprintParams
from router.bundle import ITEM, USER, write_bundle
from router.encoders import EncoderIdentity
from router.items import ItemRanker
from router.items.linear import ItemMap
from router.newcomers import NewcomerPrior
from router.policy import Catalogue, Llm
from router.publishing import publish
from router.recommender import N_LISTED

N_LLMS, N_TASKS, N_FACTORS, N_TASTES, N_QUERIES = 50, 12, 12, 16, 1_000
N_LATENT, ITEMS_PER_USER, ITEMS_NEAR = 64, 10, 50
LLMS = tuple(f"llm-{i}" for i in range(N_LLMS))
WALKS = FingerprintParams(restart_prob=0.5, n_walks=32, top_k=32)
"""Rows that are quickly made: their length matters here, not how exact they are."""

Floats = NDArray[np.float32]


def publish_random(
    root: Path, scratch: Path, encoder: EncoderIdentity, *, n_users: int, n_items: int, seed: int = 0
) -> str:
    """Publish a release of users ``user-0`` ... who have items ``item-0`` ..., and return its version.

    It is made of a graph, complete fingerprints, and a bundle with the first items of each user listed.
    """
    rng = np.random.default_rng(seed)
    took = _interactions(rng, n_users, n_items)
    users, items = [f"user-{i}" for i in range(n_users)], [f"item-{i}" for i in range(n_items)]
    graph = _graph(took, users, items).save(scratch / "graph")
    store = compute_fingerprints(graph, scratch / "fingerprints", WALKS)
    parents = {"graph": graph.checksum, "fingerprints": store.checksum}
    _write_model(scratch / "model", rng, took, users, items, encoder, parents)
    stores = {name: scratch / name for name in ("model", "graph", "fingerprints")}
    return publish(root, **stores).version


def _interactions(rng: np.random.Generator, n_users: int, n_items: int) -> sp.csr_array:
    """Users × items, few items far more popular than most."""
    users = np.repeat(np.arange(n_users), ITEMS_PER_USER)
    items = (rng.random(users.size) ** 2 * n_items).astype(np.int64)
    took = sp.csr_array((np.ones(users.size, np.float32), (users, items)), shape=(n_users, n_items))
    took.sum_duplicates()
    return took


def _graph(took: sp.csr_array, users: list[str], items: list[str]) -> Graph:
    both = sp.csr_array(sp.block_array([[None, took], [took.T, None]]))
    both.sort_indices()
    return Graph.from_arrays(
        both.indptr,
        both.indices,
        both.data,
        kind_ids=np.repeat([0, 1], [len(users), len(items)]),
        kinds=(USER, ITEM),
        keys=[*users, *items],
        directed=False,
    )


def _write_model(
    folder: Path,
    rng: np.random.Generator,
    took: sp.csr_array,
    users: list[str],
    items: list[str],
    encoder: EncoderIdentity,
    parents: dict[str, str],
) -> None:
    def normal(*shape: int) -> Floats:
        return rng.standard_normal(size=shape, dtype=np.float32)

    n_users, n_pairs = len(users), N_LLMS * (N_FACTORS + 1)
    spread = 0.05 * normal(n_users, N_FACTORS * (N_FACTORS + 1) // 2)
    spread[:, np.arange(1, N_FACTORS + 1).cumsum() - 1] = 0.5  # the diagonal
    newcomers = NewcomerPrior(
        log_shares=np.full(N_TASTES, -np.log(N_TASTES), np.float32),
        weights={
            f"{edge}.tastes": 0.1 * normal(N_TASTES, N_TASTES) for edge in ("near", "taken_by", "reached")
        },
        center=np.zeros(0, np.float32),
        scale=np.ones(0, np.float32),
        user_sent=normal(n_users, N_TASTES + N_LLMS),
        user_sends=np.ones(n_users, bool),
        item_sent=normal(len(items), N_TASTES),
        n_neighbors=0,
    )
    prior_weights, prior_vectors, prior_arrays = newcomers.to_arrays()
    ranking = _ranking(rng, took)
    write_bundle(
        folder,
        weights={
            "task.base": normal(N_TASKS + 1, N_LLMS, N_FACTORS + 1),
            "task.centroids": normal(N_TASKS, encoder.dimension),
            "taste.log_shares": newcomers.log_shares,
            "taste.centres": normal(N_TASTES, N_FACTORS),
            "taste.log_sds": np.zeros((N_TASTES, N_FACTORS), np.float32),
            "expected.values": rng.uniform(0.001, 0.01, (3, N_TASKS + 1, N_LLMS)).astype(np.float32),
            "expected.known": np.ones((3, N_TASKS + 1, N_LLMS), bool),
            "llm.known": np.ones(N_LLMS, bool),
            **prior_weights,
        },
        embeddings={
            "user": normal(n_users, N_FACTORS),
            "user.spread": spread,
            "llm": normal(N_LLMS, N_FACTORS),
            "query": normal(N_QUERIES, n_pairs),
            **{name: array for name, array in ranking.items() if "." in name},
            **prior_vectors,
        },
        arrays={
            "query_tasks": np.arange(N_QUERIES) % N_TASKS,
            **{name: array for name, array in ranking.items() if "." not in name},
            **prior_arrays,
        },
        keys={USER: users, ITEM: items, "query": [f"query {i}" for i in range(N_QUERIES)]},
        llms=_catalogue(rng),
        encoder=encoder,
        parameters={"tasks": [f"task {i}" for i in range(N_TASKS)], "attributes": None, "n_neighbors": 0},
        parents=parents,
        metrics={},
    )


def _ranking(rng: np.random.Generator, took: sp.csr_array) -> dict[str, NDArray[np.generic]]:
    """Arrays of an item ranker, and lists of first items that only look like its own."""
    n_users, n_items = took.shape
    near = sp.random_array((n_items, n_items), density=ITEMS_NEAR / n_items, rng=rng, dtype=np.float32)
    source, target = (rng.standard_normal((n_items, N_LATENT), dtype=np.float32) for _ in range(2))
    ranker = ItemRanker(ItemMap(sp.csr_array(near), source, target), took)
    first = rng.integers(n_items, size=(n_users, 1), dtype=np.int32)
    listed = (first + np.arange(min(N_LISTED, n_items), dtype=np.int32)) % np.int32(n_items)
    scores = np.broadcast_to(np.linspace(1, 0, listed.shape[1], dtype=np.float32), listed.shape)
    return ranker.to_arrays() | {"listed_ids": listed, "listed_scores": scores}


def _catalogue(rng: np.random.Generator) -> Catalogue:
    return Catalogue(
        Llm(
            name=name,
            input_usd_per_mtok=float(rng.uniform(0.1, 5)),
            output_usd_per_mtok=float(rng.uniform(0.1, 15)),
            context_tokens=int(rng.integers(2_000, 200_000)),
            capabilities=frozenset({"tools"}) if i % 5 else frozenset(),
        )
        for i, name in enumerate(LLMS)
    )
