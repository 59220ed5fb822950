"""Choice of LLMs on persona-sim: the simple routers that a learned one has to beat.

Real responses, simulated users. G is the share of the gap between a random choice and the user's best one
that is closed (random 0, oracle 1); *seen* are training queries that the user has not answered, *new* are
queries of the test split. Means over three seeds of users. The bounds are what each baseline is known to
reach, less .01.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from datasets import gowalla, shared_file
from harness import Figure, at_least, at_most, note, run_alone

from router.baselines import (
    FactorRouter,
    PopularityRouter,
    TelemetryRouter,
    UserKnnRouter,
    UserTaskRouter,
    log_likelihood,
)
from router.baselines.factors import Block
from router.baselines.personalized_router import PersonalizedRouter
from router.persona import (
    ChoiceRouter,
    Track,
    World,
    choice_quality,
    evaluate_new_llm,
    evaluate_new_users,
    evaluate_warm,
    load_world,
    warm_data,
)
from router.persona.items import item_world, spectral_features, taste_clusters
from router.persona.world import Strength

SEEDS = (1, 2, 3)
SUPPORTS = (0, 1, 3, 5, 10)
PENALTIES = (5.0, 10.0, 20.0, 40.0)
VALIDATION = 0.1
MARGIN = 0.01
RHOS = (0.0, 0.6)

Make = Callable[[], ChoiceRouter]
Known = dict[str, tuple[float, float]]
# Known G (seen, new), by strength.
WARM: dict[Strength, Known] = {
    "medium": {
        "popularity by query, blind to users": (0.532, 0.258),
        "user x task": (0.539, 0.551),
        "user-kNN": (0.645, 0.537),
        "MF": (0.570, 0.573),
        "MF + queries": (0.826, 0.571),
        "response features": (0.914, 0.606),
    },
    "mild": {"MF + queries": (0.841, 0.499), "response features": (0.925, 0.536)},
    "strong": {"MF + queries": (0.801, 0.631), "response features": (0.902, 0.665)},
}
NEW_USERS: dict[int, tuple[float, float]] = {
    0: (0.538, 0.266),
    1: (0.613, 0.346),
    3: (0.674, 0.423),
    5: (0.705, 0.458),
    10: (0.753, 0.511),
}
# Router, probes a task, known G.
NEW_LLM = (("MF", 0, 0.553), ("response features", 0, 0.581), ("response features", 5, 0.583))


def measure() -> list[Figure]:
    """All protocols."""
    figures: list[Figure] = []
    for strength, known in WARM.items():
        world = load_world(shared_file("persona-sim"), strength)
        penalty, chosen = choose_penalty(world, strength)
        routers = _routers(penalty)
        figures += chosen
        figures += _warm(world, strength, routers if strength == "medium" else known, routers)
        if strength == "medium":
            figures += _blind_oracle(world)
            figures += _new_users(world, routers)
            figures += _new_llm(world, routers)
            figures += _items(world, routers)
    return figures


def _routers(penalty: float) -> dict[str, tuple[Make, Track]]:
    """All routers, the penalty of the factor models given."""

    def factors(*blocks: Block) -> Make:
        return lambda: FactorRouter(blocks, factor_penalty=penalty)

    return {
        "popularity": (lambda: PopularityRouter("all"), "choice-only"),
        "popularity by task": (lambda: PopularityRouter("task"), "choice-only"),
        "popularity by query, blind to users": (lambda: PopularityRouter("query"), "choice-only"),
        "PersonalizedRouter as released": (PersonalizedRouter, "choice-only"),
        "user x task": (UserTaskRouter, "choice-only"),
        "user-kNN": (UserKnnRouter, "choice-only"),
        "MF": (factors("task"), "choice-only"),
        "MF + queries": (factors("task", "query"), "choice-only"),
        "bilinear": (factors("task", "embedding"), "choice-only"),
        "bilinear + queries": (factors("task", "query", "embedding"), "choice-only"),
        "response features": (TelemetryRouter, "telemetry"),
    }


def choose_penalty(world: World, strength: Strength) -> tuple[float, list[Figure]]:
    """Penalty of the factor models that is best on choices held out of the training data."""
    data = warm_data(world, SEEDS[0], "choice-only")
    held_out = np.random.default_rng(0).random(len(data.choices)) < VALIDATION
    train = data.with_choices(data.choices.take(~held_out))
    values = []
    for penalty in PENALTIES:
        model = FactorRouter(factor_penalty=penalty)
        model.fit(train)
        values.append(log_likelihood(model, data.choices.take(held_out)))
    name = f"{strength}, validation: MF + queries, log-likelihood at penalty"
    figures = [note(f"{name} {penalty:g}", value) for penalty, value in zip(PENALTIES, values, strict=True)]
    return PENALTIES[int(np.argmax(values))], figures


def _blind_oracle(world: World) -> Iterator[Figure]:
    """What a router that sees the answers but not the user could reach: the LLM best on average."""
    everyone = np.ones((len(world.of_seed(SEEDS[0]).weights), 1), dtype=bool)
    for part, queries in (("training", world.train_queries), ("test", ~world.train_queries)):
        gains = []
        for seed in SEEDS:
            utilities = world.utilities(seed)
            scores = np.broadcast_to(utilities.mean(axis=0), utilities.shape)
            gains.append(choice_quality(utilities, scores, everyone & queries).gain.mean())
        yield note(f"G, medium, sees utilities: best for all users, {part} queries", np.mean(gains))


def _warm(
    world: World, strength: Strength, names: Iterable[str], routers: dict[str, tuple[Make, Track]]
) -> Iterator[Figure]:
    for name in names:
        make, track = routers[name]
        results = [evaluate_warm(world, seed, make, track) for seed in SEEDS]
        known = WARM[strength].get(name, (None, None))
        for part, bound in zip(("seen", "new"), known, strict=True):
            value = np.mean([getattr(result, part).gain.mean() for result in results])
            yield _figure(f"{strength}, {track}: {name}, {part}", value, bound)


def _new_users(world: World, routers: dict[str, tuple[Make, Track]]) -> Iterator[Figure]:
    for name in ("MF + queries", "response features"):
        make, track = routers[name]
        results = [evaluate_new_users(world, seed, make, track, SUPPORTS) for seed in SEEDS]
        for k, bounds in NEW_USERS.items():
            for part, bound in zip(("seen", "new"), bounds, strict=True):
                value = np.mean([getattr(result[k], part).gain.mean() for result in results])
                yield _figure(f"new users, {track}: {name}, particles, k={k}, {part}", value, bound)


def _new_llm(world: World, routers: dict[str, tuple[Make, Track]]) -> Iterator[Figure]:
    for router, n_probes, bound in NEW_LLM:
        make, track = routers[router]
        name = f"new LLM, {track}: {router}, {n_probes} probes a task"
        results = [evaluate_new_llm(world, seed, make, track, n_probes=n_probes) for seed in SEEDS]
        yield _figure(name, np.mean([result.quality.gain.mean() for result in results]), bound)
        for part in ("recall", "precision", "gain_where_best"):
            value = np.mean([getattr(result, part) for result in results])
            if not np.isnan(value):
                yield note(f"{name}, {part.replace('_', ' ')}", value)


def _items(world: World, routers: dict[str, tuple[Make, Track]]) -> Iterator[Figure]:
    """Gain of new users without choices from the spectral features of their items."""
    train, test = gowalla()
    clusters, features = taste_clusters(train + test), spectral_features(train)
    for rho in RHOS:
        for name in ("MF + queries", "response features"):
            make, track = routers[name]
            gains = [_item_gain(world, seed, rho, make, track, clusters, features) for seed in SEEDS]
            mean = np.mean(gains, axis=0)
            for part, gain, known in zip(("seen", "new"), mean, (0.092, 0.084), strict=True):
                label = f"Gowalla items, rho={rho:g}, {track}: {name}, k=0, {part}: gain"
                if rho == 0.0:
                    yield at_most(label, abs(gain), MARGIN)
                else:
                    yield note(f"{label} (known: {known})", gain)


def _item_gain(
    world: World, seed: int, rho: float, make: Make, track: Track, clusters: np.ndarray, features: np.ndarray
) -> tuple[float, float]:
    given = item_world(world, seed, clusters, rho=rho)
    without = evaluate_new_users(given.world, seed, make, track, (0,))[0]
    own = features[given.item_users]
    with_items = evaluate_new_users(given.world, seed, make, track, (0,), user_features=own)[0]
    seen, new = (getattr(with_items, p).gain - getattr(without, p).gain for p in ("seen", "new"))
    return float(seen.mean()), float(new.mean())


def _figure(name: str, value: float, known: float | None) -> Figure:
    return note(f"G, {name}", value) if known is None else at_least(f"G, {name}", value, known - MARGIN)


if __name__ == "__main__":
    run_alone("router_choice", measure)
