"""LightGCN beside ours, trained to convergence on a part of Gowalla that a CPU can train it on.

The part: users drawn at random, and the items that five of them went for. LightGCN's number of epochs is
chosen on a fifth of each user's training interactions, and it is trained anew on all of them; so are the
terms of ours. The default terms have the parameters that were chosen on all of Gowalla. There, LightGCN's
1,000 epochs take days on such a CPU, and its published figures stand in for it (`router_items`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from datasets import gowalla
from harness import Figure, note, run_alone

from router.baselines.lightgcn import LightGcnRanker
from router.items import (
    RP3BETA,
    ItemRanker,
    Quality,
    check_interactions,
    choose_terms,
    default_terms,
    item_quality,
    split_interactions,
)

N_USERS = 3_000
LEAST_USERS = 5
K = 20
MOST_EPOCHS, EVERY, PATIENCE = 200, 10, 3
LEARNING_RATE = 5e-3


def measure() -> list[Figure]:
    """Choose, train, compare."""
    torch.set_num_threads(1)
    train, held_out = part_of_gowalla()
    return [
        note("part of Gowalla: users", train.shape[0]),
        note("part of Gowalla: items", train.shape[1]),
        note("part of Gowalla: training interactions", train.nnz),
        *compared(train, held_out),
    ]


def part_of_gowalla() -> tuple[sp.csr_array, sp.csr_array]:
    """Training and test interactions of the part."""
    train, held_out = gowalla()
    users = np.sort(np.random.default_rng(0).choice(train.shape[0], size=N_USERS, replace=False))
    rows = sp.csr_array(train[users])
    items = np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1]) >= LEAST_USERS)
    return check_interactions(sp.csr_array(rows[:, items])), sp.csr_array(held_out[users][:, items])


def compared(train: sp.csr_array, held_out: sp.csr_array) -> Iterator[Figure]:
    """Quality on the test split."""
    started = time.process_time()
    part, validation = split_interactions(train)
    n_epochs, quality = chosen_epochs(part, validation)
    yield note("LightGCN: epochs, chosen on validation", n_epochs)
    yield from _quality("validation, LightGCN", quality)
    network = LightGcnRanker(learning_rate=LEARNING_RATE)
    network.fit(train, n_epochs)
    yield note("LightGCN: CPU time of choosing and training", time.process_time() - started, "s")
    yield from _quality("test split, LightGCN", item_quality(network.recommend, held_out, k=K))
    started = time.process_time()
    choice = choose_terms(train)
    yield note("ours: CPU time of choosing the terms", time.process_time() - started, "s")
    for term, weight in choice.terms:
        yield note(f"ours: weight of {term}", weight)
    methods = {"ours": choice.terms, "default terms": default_terms(), "RP3beta": ((RP3BETA, 1.0),)}
    for name, terms in methods.items():
        ranker = ItemRanker.fit(part, terms)
        yield from _quality(f"validation, {name}", item_quality(ranker.recommend, validation, k=K))
        started = time.process_time()
        ranker = ItemRanker.fit(train, terms)
        yield note(f"{name}: CPU time of fitting", time.process_time() - started, "s")
        yield from _quality(f"test split, {name}", item_quality(ranker.recommend, held_out, k=K))


def chosen_epochs(part: sp.csr_array, validation: sp.csr_array) -> tuple[int, Quality]:
    """Epochs of LightGCN of the best quality on validation, which is returned too."""
    network = LightGcnRanker(learning_rate=LEARNING_RATE)
    reached: dict[int, Quality] = {}

    def goes_on(epoch: int) -> bool:
        reached[epoch] = item_quality(network.recommend, validation, k=K)
        return epoch - best_epoch() < PATIENCE * EVERY

    def best_epoch() -> int:
        return max(reached, key=lambda epoch: reached[epoch].mean)

    network.fit(part, MOST_EPOCHS, every=EVERY, after=goes_on)
    return best_epoch(), reached[best_epoch()]


def _quality(name: str, quality: Quality) -> Iterator[Figure]:
    yield note(f"{name}: Recall@{K}", quality.recall)
    yield note(f"{name}: NDCG@{K}", quality.ndcg)


if __name__ == "__main__":
    run_alone("router_lightgcn", measure)
