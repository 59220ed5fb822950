"""Bundles with random weights, written in milliseconds: for tests that need a release and no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from router.bundle import Bundle, write_bundle
from router.encoders import EncoderIdentity
from router.items import ItemRanker
from router.policy import Catalogue, Llm
from router.recommender import lists_of
from router.scorer import packed

ENCODER = EncoderIdentity("hashing", 1, 16)
TASKS = ("code", "poems")


def write_synthetic(
    path: Path,
    *,
    users: Sequence[Any] = ("ann", "bob", "cid"),
    items: Sequence[Any] = (),
    llms: Sequence[str] = ("one", "two", "three"),
    n_tastes: int = 2,
    n_factors: int = 3,
    lists: bool = True,
    seed: int = 0,
    encoder: EncoderIdentity = ENCODER,
    parents: dict[str, str] | None = None,
) -> Bundle:
    """Write a choice-only bundle whose last LLM is unknown to the model; it ranks the items, if any."""
    rng = np.random.default_rng(seed)
    m, d, n_tasks = len(llms), n_factors, len(TASKS)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    embeddings = {
        "user": normal(len(users), d),
        "llm": normal(m, d),
        "query": np.zeros((0, m * (d + 1)), np.float32),
    }
    roots = rng.normal(size=(len(users), d, d))
    embeddings["user.spread"] = packed(roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(d))
    arrays: dict[str, Any] = {"query_tasks": np.zeros(0, np.int64)}
    keys: dict[str, Any] = {"user": users, "query": []}
    if items:
        keys["item"] = items
        visits = sp.random_array((len(users), len(items)), density=0.2, rng=rng, dtype=np.float32)
        ranker = ItemRanker.fit(sp.csr_array(visits))
        parts = ranker.to_arrays() | (lists_of(ranker) if lists else {})
        embeddings |= {name: array for name, array in parts.items() if "." in name}
        arrays |= {name: array for name, array in parts.items() if "." not in name}
    return write_bundle(
        path,
        weights={
            "task.base": normal(n_tasks + 1, m, d + 1),
            "task.centroids": normal(n_tasks, encoder.dimension),
            "taste.log_shares": np.log(rng.dirichlet(np.ones(n_tastes))).astype(np.float32),
            "taste.centres": normal(n_tastes, d),
            "taste.log_sds": 0.2 * normal(n_tastes, d) - 0.5,
            "expected.values": np.abs(normal(3, n_tasks + 1, m)),
            "expected.known": np.ones((3, n_tasks + 1, m), dtype=bool),
            "llm.known": np.arange(m) < m - 1,
        },
        embeddings=embeddings,
        arrays=arrays,
        keys=keys,
        llms=Catalogue(Llm(name=name) for name in llms),
        encoder=encoder,
        parameters={"tasks": list(TASKS), "attributes": None, "n_neighbors": 0, "answer_features": []},
        parents=parents or {},
        metrics={},
    )
