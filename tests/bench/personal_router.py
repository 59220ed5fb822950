"""The personal router on persona-sim, next to the simple routers that are best at each protocol.

Real responses, simulated users. G is the share of the gap between a random choice and the user's best one
that is closed (random 0, oracle 1); *seen* are training queries that the user has not answered, *new* are
queries of the test split. Means over three seeds of users. The best baseline of a row is the best of several
that are measured in the same run; the difference to it is paired by user, its 95 % interval is over users and
seeds. Settings of the router and the baselines' penalty were chosen on held-out training data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from datasets import shared_file
from harness import Comparison, Figure, Measurement, at_most, note, run_alone
from persona_runs import PARTS, SEEDS, SUPPORTS, Run, results
from router_choice import BAYES, MARGIN, by_seed, item_gain, mean

from router.persona import TRACKS, Track, load_world, paired_difference, warm_data
from router.persona.world import Strength
from router.train import train

OURS = "ours"
TRAINING_S = 300.0
PROBES = 5
RHO = 0.6
# Candidates for the best baseline, each in the track that it is of.
WARM_BASELINES: dict[Track, tuple[str, ...]] = {
    "choice-only": ("MF + queries", "bilinear + queries"),
    "telemetry": ("response features", "bilinear + queries"),
}
NEW_USER_BASELINES: dict[Track, tuple[str, ...]] = {
    "choice-only": ("user-kNN", "MF + queries", "bilinear + queries"),
    "telemetry": ("response features", "response features, own posterior", "bilinear + queries"),
}
ITEM_BASELINES = ("MF + queries", "bilinear + queries")
Pair = tuple[float | None, float | None]
NONE: Pair = (None, None)

# Goals for G (seen, new), and what the best baseline is known to reach.
WARM: dict[tuple[Strength, Track], tuple[Pair, Pair]] = {
    ("medium", "choice-only"): ((0.85, 0.590), (0.826, 0.573)),
    ("medium", "telemetry"): ((0.930, 0.612), (0.914, 0.606)),
    ("mild", "choice-only"): (NONE, (0.854, 0.503)),
    ("mild", "telemetry"): (NONE, (0.925, 0.536)),
    ("strong", "choice-only"): (NONE, (0.801, 0.631)),
    ("strong", "telemetry"): (NONE, (0.902, 0.665)),
}
NEW_USERS: dict[int, Pair] = {1: (0.635, 0.350), 3: (0.71, 0.435), 10: (0.81, 0.53)}
KNOWN_NEW_USERS: dict[int, Pair] = {
    0: (0.538, 0.266),
    1: (0.613, 0.346),
    3: (0.674, 0.423),
    5: (0.705, 0.458),
    10: (0.753, 0.511),
}
ITEMS, KNOWN_ITEMS = {"seen": 0.10, "new": 0.09}, {"seen": 0.092, "new": 0.084}
NEW_LLM, KNOWN_NEW_LLM, NEW_LLM_RECALL = 0.590, 0.583, 0.15


def measure() -> list[Measurement]:
    """All protocols."""
    results(all_runs())
    return [
        *warm(),
        *(row for track in TRACKS for row in new_users(track)),
        *items(),
        *new_llm(),
        *accuracy(),
        *beside_bayes(),
        *training_time(),
    ]


def all_runs() -> list[Run]:
    """Everything that is measured here."""
    compared_runs = [
        *(_runs_of("warm", track, WARM_BASELINES[track], strength) for strength, track in WARM),
        *(_runs_of("new users", track, NEW_USER_BASELINES[track]) for track in TRACKS),
        *(_runs_of("new users", "choice-only", ITEM_BASELINES, rho=rho) for rho in (RHO, 0.0)),
        _runs_of("new LLM", "telemetry", ("response features",), n_probes=PROBES),
    ]
    runs = [run for by_router in compared_runs for of_router in by_router.values() for run in of_router]
    return [*runs, *by_seed("warm", BAYES), *by_seed("new users", BAYES)]


def warm() -> Iterator[Comparison]:
    """Users known in training, of all strengths."""
    for (strength, track), (goals, known) in WARM.items():
        for part, goal, reached in zip(PARTS, goals, known, strict=True):
            runs = _runs_of("warm", track, WARM_BASELINES[track], strength)
            yield compared(f"warm, {track}, {strength}: {part}", runs, part, goal, reached)


def new_users(track: Track) -> Iterator[Comparison]:
    """Users unknown in training, after k choices; goals are of the choice-only track."""
    runs = _runs_of("new users", track, NEW_USER_BASELINES[track])
    goals, known = (NEW_USERS, KNOWN_NEW_USERS) if track == "choice-only" else ({}, {})
    for k in SUPPORTS:
        for part, goal, reached in zip(PARTS, goals.get(k, NONE), known.get(k, NONE), strict=True):
            name = f"new users, {track}, k={k}: {part}"
            yield compared(name, runs, f"k={k}, {part}", goal, reached, judged=k in NEW_USERS)


def items() -> Iterator[Comparison]:
    """Gain of new users without choices from the spectral features of their items."""
    runs = _runs_of("new users", "choice-only", ITEM_BASELINES, rho=RHO)
    for part, goal in ITEMS.items():
        gains = {router: [_gain_by_user(run, part) for run in of] for router, of in runs.items()}
        best = max(ITEM_BASELINES, key=lambda router: np.mean([g.mean() for g in gains[router]]))
        gain = item_gain(OURS, RHO, part, "choice-only")
        interval = paired_difference(gains[OURS], gains[best])
        yield Comparison(
            name=f"new users, k=0, Gowalla items, rho={RHO:g}, choice-only: gain over no items, {part}",
            goal=f"≥ {goal:g}",
            known=KNOWN_ITEMS[part],
            baseline=best,
            baseline_value=item_gain(best, RHO, part, "choice-only"),
            ours=gain,
            interval=interval,
            ok=gain >= goal and interval[1] > 0.0,
        )
    for part in PARTS:
        gain = item_gain(OURS, 0.0, part, "choice-only")
        name = f"control, rho=0, choice-only: gain over no items, {part}"
        yield Comparison(name, f"within ±{MARGIN:g}", None, "", None, gain, None, abs(gain) <= MARGIN)


def new_llm() -> Iterator[Measurement]:
    """Each LLM in turn unknown but for a few probes."""
    runs = _runs_of("new LLM", "telemetry", ("response features",), n_probes=PROBES)
    name = f"new LLM, telemetry, {PROBES} probes a task"
    yield compared(f"{name}: G, new", runs, "new", NEW_LLM, KNOWN_NEW_LLM)
    recall, of_baseline = mean(runs[OURS], "recall"), mean(runs["response features"], "recall")
    yield Comparison(
        f"{name}: recall",
        f"≥ {NEW_LLM_RECALL:g}",
        None,
        "response features",
        of_baseline,
        recall,
        None,
        recall >= NEW_LLM_RECALL,
    )
    yield note(f"{name}: precision", mean(runs[OURS], "precision"))
    yield note(f"{name}: G where the new LLM is best", mean(runs[OURS], "gain_where_best"))


def accuracy() -> Iterator[Figure]:
    """How often the user's best LLM is chosen, by the number of observed choices."""
    for track in TRACKS:
        for part in PARTS:
            new, known = (by_seed(protocol, OURS, track=track) for protocol in ("new users", "warm"))
            for k in SUPPORTS:
                yield note(
                    f"accuracy, new users, {track}, k={k}, {part}", mean(new, f"k={k}, {part}, accuracy")
                )
            yield note(
                f"accuracy, warm (20 to 60 choices), {track}, {part}", mean(known, f"{part}, accuracy")
            )


def beside_bayes() -> Iterator[Figure]:
    """How much of the way from the best baseline to Bayes' rule with the true law is left."""
    bayes = by_seed("warm", BAYES)
    for part in PARTS:
        yield note(f"telemetry, medium: G of Bayes with the true law, warm, {part}", mean(bayes, part))
    bayes = by_seed("new users", BAYES)
    for k in SUPPORTS:
        for part in PARTS:
            value = mean(bayes, f"k={k}, {part}")
            yield note(f"telemetry, medium: G of Bayes with the true law, new users, k={k}, {part}", value)


def training_time() -> Iterator[Figure]:
    """Wall-clock time of one training."""
    world = load_world(shared_file("persona-sim"))
    for track in TRACKS:
        data = warm_data(world, SEEDS[0], track)
        started = time.perf_counter()
        train(data, device="cpu")
        yield at_most(f"training, {track}, one thread", time.perf_counter() - started, TRAINING_S, "s")


def compared(
    name: str,
    runs: dict[str, Sequence[Run]],
    of: str,
    goal: float | None,
    known: float | None,
    *,
    judged: bool = True,
) -> Comparison:
    """Compare ours with the best of the others.

    Parameters
    ----------
    runs
        Runs of each router, one per seed.
    of
        Name of the numbers by user in their results.
    goal
        What ours should reach, or None. With or without it, ours should beat the baseline: the whole
        interval of the difference should be above 0.
    judged
        Whether any of that is asked for.
    """
    values = {router: mean(of_router, of) for router, of_router in runs.items()}
    best = max((router for router in values if router != OURS), key=values.__getitem__)
    by_user = {router: [_of(run, of) for run in runs[router]] for router in (OURS, best)}
    interval = paired_difference(by_user[OURS], by_user[best])
    _, low, high = paired_difference(by_user[OURS], [np.zeros_like(gains) for gains in by_user[OURS]])
    wanted = "> baseline" if goal is None else f"≥ {goal:g}"
    return Comparison(
        name=name,
        goal=wanted if judged else None,
        known=known,
        baseline=best,
        baseline_value=values[best],
        ours=values[OURS],
        interval=interval,
        ok=interval[1] > 0.0 and (goal is None or values[OURS] >= goal) if judged else None,
        ours_interval=(low, high),
    )


def _gain_by_user(run: Run, part: str) -> np.ndarray:
    """What items add for each user before the first choice."""
    return _of(run, f"k=0, {part}") - _of(run, f"without items, k=0, {part}")


def _of(run: Run, name: str) -> np.ndarray:
    return results([run])[run][name]


def _runs_of(
    protocol: str, track: Track, baselines: Sequence[str], strength: Strength = "medium", **options: float
) -> dict[str, Sequence[Run]]:
    """Runs of ours in a track, and of baselines in theirs."""
    ours = {OURS: by_seed(protocol, OURS, strength, track, **options)}
    return ours | {router: by_seed(protocol, router, strength, **options) for router in baselines}


if __name__ == "__main__":
    run_alone("personal_router", measure)
