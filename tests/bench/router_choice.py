"""Choice of LLMs on persona-sim: the simple routers that a learned one has to beat.

Real responses, simulated users. G is the share of the gap between a random choice and the user's best one
that is closed (random 0, oracle 1); *seen* are training queries that the user has not answered, *new* are
queries of the test split. Means over three seeds of users. The bounds are what each baseline is known to
reach, less .01. Bayes' rule is told the law that users are drawn from: a reference, not a competitor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from datasets import shared_file
from harness import Figure, at_least, at_most, note, run_alone
from persona_runs import PARTS, PENALTIES, SEEDS, SUPPORTS, Run, penalty_run, result, results

from router.persona import Track, choice_quality, load_world
from router.persona.world import Strength

MARGIN = 0.01
RHOS = (0.0, 0.6)
BAYES = "Bayes, knows the law"
TELEMETRY = ("response features", "response features, own posterior", BAYES)

Known = tuple[float | None, float | None]
NOT_KNOWN: Known = (None, None)
# Known G (seen, new), by strength.
WARM: dict[Strength, dict[str, Known]] = {
    "medium": {
        "popularity": NOT_KNOWN,
        "popularity by task": NOT_KNOWN,
        "popularity by query, blind to users": (0.532, 0.258),
        "PersonalizedRouter as released": NOT_KNOWN,
        "user x task": (0.539, 0.551),
        "user-kNN": (0.645, 0.537),
        "MF": (0.570, 0.573),
        "MF + queries": (0.826, 0.571),
        "bilinear": NOT_KNOWN,
        "bilinear + queries": NOT_KNOWN,
        "response features": (0.914, 0.606),
        BAYES: (0.950, 0.616),
    },
    "mild": {
        "MF + queries": (0.841, 0.499),
        "bilinear + queries": (0.854, 0.503),
        "response features": (0.925, 0.536),
        BAYES: (0.954, 0.544),
    },
    "strong": {
        "MF + queries": (0.801, 0.631),
        "bilinear + queries": NOT_KNOWN,
        "response features": (0.902, 0.665),
        BAYES: (0.945, 0.679),
    },
}
PARTICLES: dict[int, Known] = {
    0: (0.538, 0.266),
    1: (0.613, 0.346),
    3: (0.674, 0.423),
    5: (0.705, 0.458),
    10: (0.753, 0.511),
}
BAYES_NEW_USERS: dict[int, Known] = {
    0: (0.570, 0.253),
    1: (0.664, 0.346),
    3: (0.767, 0.446),
    5: (0.817, 0.496),
    10: (0.883, 0.555),
}
# Routers for new users, and what they are known to reach. User-kNN looks for neighbours among known users;
# the others, unless they say otherwise, are posteriors over the known users' scores ("particles").
NEW_USERS: dict[str, dict[int, Known]] = {
    "user-kNN": dict.fromkeys(SUPPORTS, NOT_KNOWN),
    "MF + queries": PARTICLES,
    "bilinear + queries": dict.fromkeys(SUPPORTS, NOT_KNOWN),
    "response features": PARTICLES,
    "response features, own posterior": dict.fromkeys(SUPPORTS, NOT_KNOWN),
    BAYES: BAYES_NEW_USERS,
}
# Router, probes a task, known G.
NEW_LLM = (("MF", 0, 0.553), ("response features", 0, 0.581), ("response features", 5, 0.583))
ITEMS = ("MF + queries", "response features")
ITEM_GAIN = {"seen": 0.092, "new": 0.084}


def measure() -> list[Figure]:
    """All protocols."""
    results(all_runs())
    figures = [*_validation(), *_blind_oracle()]
    for strength, known in WARM.items():
        for router, bounds in known.items():
            runs = by_seed("warm", router, strength)
            for part, bound in zip(PARTS, bounds, strict=True):
                figures.append(
                    _figure(f"{strength}, {track_of(router)}: {router}, {part}", mean(runs, part), bound)
                )
    for router, by_k in NEW_USERS.items():
        runs = by_seed("new users", router)
        for k, bounds in by_k.items():
            for part, bound in zip(PARTS, bounds, strict=True):
                name = f"new users, {track_of(router)}: {router}, k={k}, {part}"
                figures.append(_figure(name, mean(runs, f"k={k}, {part}"), bound))
    return [*figures, *_new_llm(), *_items()]


def all_runs() -> list[Run]:
    """Everything that is measured here."""
    warm = [
        run
        for strength, known in WARM.items()
        for router in known
        for run in by_seed("warm", router, strength)
    ]
    new_users = [run for router in NEW_USERS for run in by_seed("new users", router)]
    new_llm = [run for router, probes, _ in NEW_LLM for run in by_seed("new LLM", router, n_probes=probes)]
    items = [run for rho in RHOS for router in ITEMS for run in by_seed("new users", router, rho=rho)]
    return [*warm, *new_users, *new_llm, *items]


def track_of(router: str) -> Track:
    """What a baseline sees."""
    return "telemetry" if router in TELEMETRY else "choice-only"


def by_seed(
    protocol: str, router: str, strength: Strength = "medium", track: Track | None = None, **options: float
) -> list[Run]:
    """Runs of a router, one per seed of users."""
    track = track_of(router) if track is None else track
    return [Run(protocol, router, track, strength, seed, **options) for seed in SEEDS]  # type: ignore[arg-type]


def mean(runs: Sequence[Run], name: str) -> float:
    """Mean over users and seeds; NaN entries are left out."""
    found = results(runs)
    return float(np.mean([np.nanmean(found[run][name]) for run in runs]))


def item_gain(router: str, rho: float, part: str, track: Track | None = None) -> float:
    """Mean gain in G from items, of new users without choices."""
    runs = by_seed("new users", router, track=track, rho=rho)
    return mean(runs, f"k=0, {part}") - mean(runs, f"without items, k=0, {part}")


def _validation() -> Iterator[Figure]:
    for strength in WARM:
        values = result(penalty_run(strength))["log_likelihood"]
        name = f"{strength}, validation: MF + queries, log-likelihood at penalty"
        for penalty, value in zip(PENALTIES, values, strict=True):
            yield note(f"{name} {penalty:g}", value)


def _blind_oracle() -> Iterator[Figure]:
    """What a router that sees the answers but not the user could reach: the LLM best on average."""
    world = load_world(shared_file("persona-sim"))
    everyone = np.ones((len(world.of_seed(SEEDS[0]).weights), 1), dtype=bool)
    for part, queries in (("training", world.train_queries), ("test", ~world.train_queries)):
        gains = []
        for seed in SEEDS:
            utilities = world.utilities(seed)
            scores = np.broadcast_to(utilities.mean(axis=0), utilities.shape)
            gains.append(choice_quality(utilities, scores, everyone & queries).gain.mean())
        yield note(f"G, medium, sees utilities: best for all users, {part} queries", np.mean(gains))


def _new_llm() -> Iterator[Figure]:
    for router, n_probes, bound in NEW_LLM:
        name = f"new LLM, {track_of(router)}: {router}, {n_probes} probes a task"
        runs = by_seed("new LLM", router, n_probes=n_probes)
        yield _figure(name, mean(runs, "new"), bound)
        for part in ("recall", "precision", "gain_where_best"):
            values = [result(run)[part] for run in runs]
            if not np.isnan(values).any():
                yield note(f"{name}, {part.replace('_', ' ')}", np.mean(values))


def _items() -> Iterator[Figure]:
    """Gain of new users without choices from the spectral features of their items."""
    for rho in RHOS:
        for router in ITEMS:
            for part, known in ITEM_GAIN.items():
                gain = item_gain(router, rho, part)
                label = f"Gowalla items, rho={rho:g}, {track_of(router)}: {router}, k=0, {part}: gain"
                if rho == 0.0:
                    yield at_most(label, abs(gain), MARGIN)
                else:
                    yield note(f"{label} (known: {known})", gain)


def _figure(name: str, value: float, known: float | None) -> Figure:
    return note(f"G, {name}", value) if known is None else at_least(f"G, {name}", value, known - MARGIN)


if __name__ == "__main__":
    run_alone("router_choice", measure)
