"""Item ranking on Gowalla (LightGCN's split): closed forms and a trained head, chosen on training data.

A fifth of each user's training interactions, drawn at random, is held out to choose by; the test split plays
no part in the choices. Gains on the one are larger than on the other: the test split is no random one (the
shares of frequent items in it scatter more than twice as much as chance would have them).
LightGCN is compared by its published figures: its 1,000 epochs take two days on one such core.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from datasets import gowalla
from harness import Figure, at_least, at_most, note, run_alone
from numpy.typing import NDArray

from router.items import (
    Cooccurrence,
    ItemMap,
    ItemRanker,
    LowPass,
    Quality,
    Term,
    blend,
    check_interactions,
    choose_terms,
    default_terms,
    item_quality,
    split_interactions,
)
from router.items.learning import Network

K = 20
CHOOSING_USERS = 4_000
PUBLISHED = {"LightGCN": (0.1830, 0.1554), "GF-CF": (0.1849, 0.1518), "BSPM": (0.1920, 0.1597)}
GOAL = (0.192, 0.160)
DISCOUNTS = (0.0, 0.1, 0.2, 0.3)
FILTER_WEIGHTS = (0.03, 0.1, 0.3, 1.0)
HEAD_WEIGHT = 1.5
CHOOSING_S = 900.0

Chosen = Sequence[tuple[Term, float]]


def measure() -> list[Figure]:
    """Choose, fit, evaluate."""
    split, held_out = gowalla()
    train = check_interactions(split)
    choosing = Choosing(train)
    methods = {
        "RP3beta": choosing.rp3beta(),
        "GF-CF": choosing.gfcf(),
        "default terms": choosing.default(),
        "closed forms": choosing.chosen("closed forms", ()),
        "ours": choosing.chosen("ours", [(Network(device="cpu"), HEAD_WEIGHT)]),
    }
    figures = [*choosing.figures, *_test(train, held_out, methods)]
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return [*figures, at_most("peak memory of the whole run", peak_gb, 4.0, "GB")]


def _test(train: sp.csr_array, held_out: sp.csr_array, methods: Mapping[str, Chosen]) -> Iterator[Figure]:
    reached = {"popularity": item_quality(_popular(train), held_out, k=K)}
    for name, chosen in methods.items():
        cpu = time.process_time()
        ranker = ItemRanker.fit(train, chosen)
        yield note(f"{name}: CPU time of fitting", time.process_time() - cpu, "s")
        cpu = time.process_time()
        reached[name] = item_quality(ranker.recommend, held_out, k=K)
        yield note(f"{name}: CPU time of all recommendations", time.process_time() - cpu, "s")
    for name, quality in reached.items():
        make = at_least if name == "ours" else lambda label, value, bound: note(label, value)
        yield make(f"test split, {name}: Recall@{K}", quality.recall, GOAL[0])
        yield make(f"test split, {name}: NDCG@{K}", quality.ndcg, GOAL[1])
    for name, (recall, ndcg) in PUBLISHED.items():
        yield note(f"test split, {name}, published: Recall@{K}", recall)
        yield note(f"test split, {name}, published: NDCG@{K}", ndcg)


def _popular(train: sp.csr_array) -> Callable[[NDArray[np.int64], int], Any]:
    """Recommend the most frequent items not seen yet: the answer to no interactions, less the own ones."""
    frequency = train.sum(axis=0)[:, None]
    ones = np.full((train.shape[1], 1), 1.0)
    return ItemRanker(ItemMap.of_vectors(ones, frequency), train).recommend


class Choosing:
    """Choices on the validation split, and the figures they were made by."""

    def __init__(self, train: sp.csr_array) -> None:
        self.train = train
        self.part, self.held_out = split_interactions(train, fraction=0.2, seed=0)
        with_items = np.flatnonzero(np.diff(self.held_out.indptr))
        rng = np.random.default_rng(0)
        self.users = np.sort(rng.choice(with_items, size=CHOOSING_USERS, replace=False))
        self.figures: list[Figure] = []

    def rp3beta(self) -> Chosen:
        """RP³β, three hops, as published: transition probabilities over item degree ** β."""
        candidates = [[(Cooccurrence(1.0, 1.0, beta), 1.0)] for beta in DISCOUNTS]
        return self._best("RP3beta", [(chosen, self._fitted(chosen)) for chosen in candidates])

    def gfcf(self) -> Chosen:
        """GF-CF as published, the weight of its low-pass term chosen."""
        terms = (Cooccurrence(1.0, 0.5, 0.5), LowPass(256, 0.5, 0.5, 0.5))
        maps = [term.fit(self.part).normalised(self.part) for term in terms]
        candidates = [
            (list(zip(terms, weights, strict=True)), self._quality(blend(maps, list(weights))))
            for weights in ((1.0, weight) for weight in FILTER_WEIGHTS)
        ]
        return self._best("GF-CF", candidates)

    def default(self) -> Chosen:
        """What tiny data gets."""
        return self._best("default terms", [(default_terms(), self._fitted(default_terms()))])

    def chosen(self, name: str, further: Chosen) -> Chosen:
        """Terms as a training of the router chooses them."""
        started, cpu = time.perf_counter(), time.process_time()
        choice = choose_terms(self.train, further)
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        assert choice.quality is not None
        if further:  # its closed forms alone are those of the choice without
            for at, (term, quality) in enumerate(choice.alone, start=1):
                self._note(f"term {at} alone", [(term, 1.0)], quality)
        self._note(name, choice.terms, choice.quality)
        self.figures += [
            at_most(f"{name}: time of choosing", took_s, CHOOSING_S, "s"),
            note(f"{name}: CPU time of choosing", cpu_s, "s"),
        ]
        return choice.terms

    def _best(self, name: str, candidates: Sequence[tuple[Chosen, Quality]]) -> Chosen:
        chosen, quality = max(candidates, key=lambda candidate: candidate[1].mean)
        self._note(name, chosen, quality)
        return chosen

    def _fitted(self, chosen: Chosen) -> Quality:
        return self._quality(ItemRanker.fit(self.part, chosen).item_map)

    def _quality(self, item_map: ItemMap) -> Quality:
        ranker = ItemRanker(item_map, self.part)
        return item_quality(ranker.recommend, self.held_out, k=K, users=self.users)

    def _note(self, name: str, chosen: Chosen, quality: Quality) -> None:
        shown = " + ".join(f"{weight:g} {term}" for term, weight in chosen)
        self.figures += [
            note(f"validation, {name}: Recall@{K} at {shown}", quality.recall),
            note(f"validation, {name}: NDCG@{K}", quality.ndcg),
        ]


if __name__ == "__main__":
    run_alone("router_items", measure)
