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
from dataclasses import replace
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
    NeighborRidge,
    Quality,
    Term,
    blend,
    check_interactions,
    item_quality,
    search_coordinates,
    split_interactions,
)
from router.items.learning import Network

K = 20
CHOOSING_USERS = 5_000
PUBLISHED = {"LightGCN": (0.1830, 0.1554), "GF-CF": (0.1849, 0.1518), "BSPM": (0.1920, 0.1597)}
GOAL = (0.192, 0.160)
# Values tried, one parameter after the other.
DISCOUNTS = (0.0, 0.1, 0.2, 0.3)
FILTER_WEIGHTS = (0.03, 0.1, 0.3, 1.0)
COOCCURRENCE = {
    "user_exponent": (0.4, 0.5, 0.6, 0.7, 0.8),
    "source_exponent": (0.4, 0.5, 0.6, 0.7, 0.8),
    "target_exponent": (0.2, 0.25, 0.3, 0.35, 0.4),
}
RIDGE = {
    "user_exponent": (0.2, 0.3, 0.4, 0.5),
    "penalty": (4.0, 7.0, 10.0),
    "penalty_exponent": (0.25, 0.5, 0.75),
}
LOW_PASS = {
    "item_exponent": (0.3, 0.4, 0.5),
    "user_exponent": (0.2, 0.3, 0.4),
    "target_exponent": (0.1, 0.2, 0.3),
}
START = {"cooccurrence": 1.0, "ridge": 0.5, "low-pass": 0.6, "network": 0.0}
WEIGHTS = {
    "ridge": (0.25, 0.5, 1.0),
    "low-pass": (0.3, 0.6, 1.0),
    "cooccurrence": (0.0, 0.5),
    "network": (0.3, 0.6, 1.0, 1.5),
}
TRAINING_S = 900.0

Chosen = list[tuple[Term, float]]


def measure() -> list[Figure]:
    """Choose, fit, evaluate."""
    split, held_out = gowalla()
    train = check_interactions(split)
    started, cpu = time.perf_counter(), time.process_time()
    choosing = Choosing(train)
    methods = {"RP3beta": choosing.rp3beta(), "GF-CF": choosing.gfcf()}
    methods |= choosing.ours()
    figures = [
        *choosing.figures,
        note("time of choosing", time.perf_counter() - started, "s"),
        note("CPU time of choosing", time.process_time() - cpu, "s"),
    ]
    figures += _test(train, held_out, methods)
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
        self.part, self.held_out = split_interactions(train, fraction=0.2, seed=0)
        with_items = np.flatnonzero(np.diff(self.held_out.indptr))
        rng = np.random.default_rng(0)
        self.users = np.sort(rng.choice(with_items, size=CHOOSING_USERS, replace=False))
        self.figures: list[Figure] = []

    def rp3beta(self) -> Chosen:
        """RP³β, three hops, as published: transition probabilities over item degree ** β."""
        return self._best("RP3beta", [[(Cooccurrence(1.0, 1.0, beta), 1.0)] for beta in DISCOUNTS])

    def gfcf(self) -> Chosen:
        """GF-CF as published, the weight of its low-pass term chosen."""
        terms: tuple[Term, ...] = (Cooccurrence(1.0, 0.5, 0.5), LowPass(256, 0.5, 0.5, 0.5))
        maps = self._maps(terms)
        values = [self._quality(blend(maps, [1.0, weight])).mean for weight in FILTER_WEIGHTS]
        weight = FILTER_WEIGHTS[int(np.argmax(values))]
        chosen = list(zip(terms, (1.0, weight), strict=True))
        self._note("GF-CF", chosen, self._quality(blend(maps, [1.0, weight])))
        return chosen

    def ours(self) -> dict[str, Chosen]:
        """Each term by itself, then the weights: with the trained head, and without."""
        terms: tuple[Term, ...] = (
            self._search(Cooccurrence(0.6, 0.6, 0.3), COOCCURRENCE),
            self._search(NeighborRidge(0.4, 100, 7.0, 0.5), RIDGE),
            replace(self._search(LowPass(256, 0.3, 0.4, 0.2), LOW_PASS), rank=512),
        )
        started = time.perf_counter()
        head = Network(device="cpu")
        maps = self._maps((*terms, head))
        self.figures.append(
            at_most(
                "time of fitting the terms, head included", time.perf_counter() - started, TRAINING_S, "s"
            )
        )
        self._note("trained head", [(head, 1.0)], self._quality(maps[-1]))

        def value(weights: dict[str, float]) -> float:
            return self._quality(blend(maps, list(weights.values()))).mean

        weights, _ = search_coordinates(START, WEIGHTS, lambda old, name, new: old | {name: new}, value)
        methods: dict[str, Chosen] = {}
        for name, used in (("closed forms", terms), ("ours", (*terms, head))):
            chosen = list(zip(used, weights.values(), strict=False))
            of_terms = [weight for _, weight in chosen]
            self._note(name, chosen, self._quality(blend(maps[: len(used)], of_terms)))
            methods[name] = chosen
        return methods

    def _search(self, start: Any, grid: Mapping[str, Sequence[float]]) -> Any:
        def value(term: Any) -> float:
            return self._quality(term.fit(self.part)).mean

        best, _ = search_coordinates(start, grid, lambda term, name, new: replace(term, **{name: new}), value)
        self._note(type(best).__name__, [(best, 1.0)], self._quality(best.fit(self.part)))
        return best

    def _best(self, name: str, candidates: Sequence[Chosen]) -> Chosen:
        qualities = [self._quality(terms[0][0].fit(self.part)) for terms in candidates]
        at = int(np.argmax([quality.mean for quality in qualities]))
        self._note(name, candidates[at], qualities[at])
        return candidates[at]

    def _maps(self, terms: Sequence[Term]) -> list[ItemMap]:
        return [term.fit(self.part).normalised(self.part) for term in terms]

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
