"""Joint training on Gowalla's items and persona-sim's choices: what each side has from the other.

Real responses, simulated users, who are users of Gowalla: a user's taste in LLMs follows from the taste in
items with probability ρ. Four trainings are compared: with all edges, without item edges, without edges
between users and LLMs, and with the items of those who chose permuted between them. The LLMs' side is judged
on users without any choice (k = 0): G is the share of the gap between a random choice and the user's best one
that is closed; *seen* are training queries, *new* those of the test split. The items' side is judged by the
network alone, not blended with closed forms, on Gowalla's test split.

The network is trained on the items once; each joint training goes on from there for an epoch, and so does the
one without edges to LLMs. λ was chosen on users held out from the known ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from datasets import gowalla, shared_file
from harness import Figure, at_least, at_most, note, run_alone

from router.items import ItemRanker, Quality, check_interactions, item_quality
from router.items.learning import train_network
from router.items.network import ItemNetwork, NetworkSettings
from router.joint import Joint, JointSettings, train_joint
from router.persona import SeenNew, evaluate_new_users, load_world, new_user_data, warm_data
from router.persona.data import Floats, Ints
from router.persona.items import ItemWorld, item_world, taste_clusters
from router.personal import PersonalRouter
from router.train import Settings, train

SEEDS = (1, 2, 3)
RHO = 0.6
K = 20
GOALS = {"seen": 0.10, "new": 0.09}
MARGIN = 0.01
KEPT_QUALITY = 0.99
CHOICES = Settings()
NETWORK = NetworkSettings()
JOINT = JointSettings(replace(NETWORK, n_epochs=1, learning_rate=0.003, weight_decay=0.0))
_PERMUTATION_STREAM = 50


def measure() -> list[Figure]:
    """Train all, compare."""
    torch.set_num_threads(1)
    split, held_out = gowalla()
    clusters = taste_clusters(split + held_out)
    interactions = check_interactions(split)
    started = time.perf_counter()
    network = train_network(interactions, NETWORK, device="cpu")
    figures = [note("time of training on items", time.perf_counter() - started, "s")]
    alone = without_llms(interactions, network)
    worlds = {rho: [LinkedWorld.of(seed, rho, clusters) for seed in SEEDS] for rho in (RHO, 0.0)}
    before = {rho: [one.answers(None) for one in side] for rho, side in worlds.items()}
    full = {rho: [one.trained(interactions, network) for one in side] for rho, side in worlds.items()}
    permuted = [one.permuted() for one in worlds[RHO]]
    controls = {
        f"rho={RHO:g}, item edges permuted": (
            before[RHO],
            [one.answers(one.trained(interactions, network), interactions) for one in permuted],
        ),
        "rho=0": (before[0.0], _answers(worlds[0.0], full[0.0], interactions)),
    }
    after = _answers(worlds[RHO], full[RHO], interactions)
    name = "choice-only, k=0: gain of G over no item edges"
    for part, goal in GOALS.items():
        figures.append(at_least(f"rho={RHO:g}, {name}, {part}", _gain(before[RHO], after, part), goal))
        for control, (without, given) in controls.items():
            size = abs(_gain(without, given, part))
            figures.append(at_most(f"{control}, {name}, {part} (absolute)", size, MARGIN))
    return [*figures, *_items_side(interactions, held_out, alone, full[RHO])]


def without_llms(interactions: sp.csr_array, network: ItemNetwork) -> Joint:
    """Go on as in joint training, with items alone."""
    nobody = np.empty(0, dtype=np.int64)
    settings = replace(JOINT, llm_weight=0.0)
    return train_joint(
        interactions, nobody, torch.zeros(0, 1), torch.zeros(1), settings, start=network, device="cpu"
    )


@dataclass(frozen=True)
class LinkedWorld:
    """A world of one seed; ``rows`` are the users of Gowalla whose items its users are said to have."""

    given: ItemWorld
    seed: int
    rows: Ints

    @classmethod
    def of(cls, seed: int, rho: float, clusters: Ints) -> LinkedWorld:
        """Make the world."""
        given = item_world(load_world(shared_file("persona-sim")), seed, clusters, rho=rho)
        return cls(given, seed, given.item_users)

    def permuted(self) -> LinkedWorld:
        """Give users the items of others."""
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, _PERMUTATION_STREAM]))
        return replace(self, rows=rng.permutation(self.rows))

    def trained(self, interactions: sp.csr_array, network: ItemNetwork) -> Joint:
        """Train both sides on the known users' choices and on all items."""
        known, _ = new_user_data(warm_data(self.given.world, self.seed, "choice-only"), 0)
        model = train(known, CHOICES, device="cpu")
        evidence = model.posterior(known.choices, known.n_users).log_evidence
        rows = self.rows[: known.n_users]
        return train_joint(interactions, rows, evidence, model.log_shares, JOINT, start=network, device="cpu")

    def answers(self, joint: Joint | None, interactions: sp.csr_array | None = None) -> SeenNew:
        """Judge the answers to new users without choices, with or without their items."""
        features: Floats | None = None
        if joint is not None and interactions is not None:
            features = joint.user_features(interactions)[self.rows]
        return evaluate_new_users(
            self.given.world,
            self.seed,
            lambda: PersonalRouter(CHOICES, device="cpu"),
            "choice-only",
            (0,),
            user_features=features,
        )[0]


def _answers(worlds: list[LinkedWorld], joints: list[Joint], interactions: sp.csr_array) -> list[SeenNew]:
    return [one.answers(joint, interactions) for one, joint in zip(worlds, joints, strict=True)]


def _gain(before: list[SeenNew], after: list[SeenNew], part: str) -> float:
    """Mean difference of G over users and seeds."""
    pairs = zip(before, after, strict=True)
    return float(np.mean([getattr(new, part).gain - getattr(old, part).gain for old, new in pairs]))


def _items_side(
    interactions: sp.csr_array, held_out: sp.csr_array, alone: Joint, joints: list[Joint]
) -> Iterator[Figure]:
    def quality(joint: Joint) -> Quality:
        ranker = ItemRanker(joint.network.item_map(), interactions)
        return item_quality(ranker.recommend, held_out, k=K)

    without, reached = quality(alone), [quality(joint) for joint in joints]
    for name, metric in ((f"Recall@{K}", "recall"), (f"NDCG@{K}", "ndcg")):
        base = getattr(without, metric)
        mean = float(np.mean([getattr(one, metric) for one in reached]))
        yield note(f"items' side alone, without edges to LLMs: {name}", base)
        yield note(f"items' side alone, trained jointly, rho={RHO:g}: {name}", mean)
        yield at_least(f"items' side: {name} kept in joint training", mean / base, KEPT_QUALITY)


if __name__ == "__main__":
    run_alone("router_joint", measure)
