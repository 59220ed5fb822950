"""Time to score 50 LLMs for a user and a query, and to decide among them, on one core.

Deciding includes constraints, costs and exploration; the encoder of the query is left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from harness import Figure, at_most, check, note, pin_to_one_core, run_alone

from router.bundle import write_bundle
from router.encoders import EncoderIdentity
from router.policy import Catalogue, EpsilonGreedy, Exploration, Greedy, Llm, Policy, Request, Thompson
from router.scorer import Event, Scorer, packed
from tests.oracles.naive_policy import drawn_largest, naive_ranking

N_LLMS = 50
N_DECISIONS = 3000
GOAL_US = 100.0
N_TASKS, N_FACTORS, N_TASTES, DIMENSION, N_USERS = 12, 12, 16, 384, 10_000
N_FEATURES, N_LANDMARKS, N_EVENTS = 12, 256, 10
OPENING_S = 1.0
N_DRAWS = 100_000
N_QUERIES = 1_000
STRATEGIES: dict[str, Exploration] = {
    "greedy": Greedy(),
    "ε-greedy": EpsilonGreedy(),
    "Thompson": Thompson(),
}


def measure() -> list[Figure]:
    """Measure each strategy without demands and with all of them."""
    pin_to_one_core()
    rng = np.random.default_rng(0)
    catalogue = Catalogue(
        Llm(
            name=f"llm-{i}",
            input_usd_per_mtok=float(rng.uniform(0.1, 5)),
            output_usd_per_mtok=float(rng.uniform(0.1, 15)),
            context_tokens=int(rng.integers(2_000, 200_000)),
            capabilities=frozenset({"tools"}) if i % 5 else frozenset(),
        )
        for i in range(N_LLMS)
    )
    demanding = Request(
        prompt_tokens=1_500,
        answer_tokens=500,
        capabilities=frozenset({"tools"}),
        allowed=frozenset(catalogue.names[:-1]),
        excluded=frozenset({"llm-7"}),
        budget_usd=0.02,
        user_budget_usd=1.0,
    )
    requests = {"no demands": Request(), "all constraints": demanding}
    deciding = [
        figure
        for name, exploration in STRATEGIES.items()
        for demands, request in requests.items()
        for figure in _figures(f"{name}, {demands}", catalogue, exploration, request)
    ]
    with tempfile.TemporaryDirectory() as folder:
        scoring = [
            figure
            for track in ("choice-only", "telemetry")
            for figure in _scoring(track, Path(folder) / track, catalogue, demanding)
        ]
    return deciding + scoring


def _scoring(track: str, folder: Path, catalogue: Catalogue, request: Request) -> Iterator[Figure]:
    """Scores, and scores with the decision, from a bundle of random numbers."""
    _write_random_bundle(folder, catalogue, telemetry=track == "telemetry")
    begin = time.perf_counter()
    scorer = Scorer.open(folder)
    yield at_most(
        f"opening a bundle of {N_USERS:,} users, {track}", time.perf_counter() - begin, OPENING_S, "s"
    )
    rng = np.random.default_rng(1)
    user = scorer.user("user-7")
    embedding = rng.normal(size=DIMENSION).astype(np.float32)
    weights = scorer.bundle.weights
    task = int((_unit(weights["task.centroids"]) @ embedding).argmax())
    pairs = weights["task.base"][task].astype(np.float64)
    if track == "telemetry":
        apart = embedding - weights["answers.centre"]
        cosines = weights["answers.landmarks"] @ apart / np.linalg.norm(apart)
        kernels = np.exp((cosines - 1.0) / 0.2) - weights["task.kernels"][task]
        features = np.tensordot(kernels, weights["answers.by_landmark"], axes=1)
        pairs = pairs + features @ weights["task.by_feature"][task]
    expected = pairs[:, :-1] @ user.vector + pairs[:, -1]
    error = np.abs(scorer.scores(user, embedding).preference - expected).max()
    check(error < 1e-2, f"scores, {track} ({error})")
    events = [Event(f"llm-{i}", embedding) for i in range(N_EVENTS)]
    known = _times(lambda: scorer.user("user-7"), 300)
    unknown = _times(lambda: scorer.user_from_events(events), 100)
    yield note(f"a known user, {track}, median", np.median(known), "µs")
    yield note(f"a new user with {N_EVENTS} choices, {track}, median", np.median(unknown) / 1e3, "ms")
    yield note(f"scores, {track}, median", np.median(_times(lambda: scorer.scores(user, embedding))), "µs")
    asked_before = _times(lambda: scorer.scores(user, embedding, query="query 7"))
    yield note(f"scores of a known query, {track}, median", np.median(asked_before), "µs")
    for name, exploration in STRATEGIES.items():
        policy = Policy(catalogue=catalogue, exploration=exploration)

        def decide(policy: Policy = policy) -> None:
            scores = scorer.scores(user, embedding)
            policy.decide(
                scores.preference,
                request,
                cost_usd=scores.cost_usd,
                score_sds=scores.sd,
                base_scores=scores.base_preference,
                rng=rng,
            )

        times = _times(decide)
        label = f"scores and decision, {track}, {name}, all constraints"
        if isinstance(exploration, Thompson):  # its integrals alone take most of the time allowed
            yield note(f"{label}, median", np.median(times), "µs")
        else:
            yield at_most(f"{label}, median", np.median(times), GOAL_US, "µs")
        yield note(f"{label}, 99 %", float(np.percentile(times, 99)), "µs")


def _write_random_bundle(folder: Path, catalogue: Catalogue, *, telemetry: bool) -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    weights = {
        "task.base": normal(N_TASKS + 1, N_LLMS, N_FACTORS + 1),
        "task.centroids": normal(N_TASKS, DIMENSION),
        "taste.log_shares": np.full(N_TASTES, -np.log(N_TASTES), np.float32),
        "taste.centres": normal(N_TASTES, N_FACTORS),
        "taste.log_sds": np.zeros((N_TASTES, N_FACTORS), np.float32),
        "expected.values": np.full((3, N_TASKS + 1, N_LLMS), 0.001, np.float32),
        "expected.known": np.ones((3, N_TASKS + 1, N_LLMS), bool),
        "llm.known": np.ones(N_LLMS, bool),
    }
    if telemetry:
        weights |= {
            "answers.centre": 0.1 * normal(DIMENSION),
            "answers.landmarks": _unit(normal(N_LANDMARKS, DIMENSION)),
            "answers.by_task": normal(N_TASKS, N_LLMS, N_FEATURES),
            "answers.by_landmark": 0.1 * normal(N_LANDMARKS, N_LLMS, N_FEATURES),
            "task.kernels": np.full((N_TASKS, N_LANDMARKS), 0.01, np.float32),
            "task.by_feature": 0.3 * normal(N_TASKS, N_FEATURES, N_FACTORS + 1),
        }
    covariance = np.broadcast_to(np.eye(N_FACTORS), (N_USERS, N_FACTORS, N_FACTORS))
    write_bundle(
        folder,
        weights=weights,
        embeddings={
            "user": normal(N_USERS, N_FACTORS),
            "user.spread": packed(covariance),
            "query": normal(N_QUERIES, N_LLMS * (N_FACTORS + 1)),
        },
        arrays={"query_tasks": np.arange(N_QUERIES) % N_TASKS},
        keys={
            "user": [f"user-{i}" for i in range(N_USERS)],
            "query": [f"query {i}" for i in range(N_QUERIES)],
        },
        llms=catalogue,
        encoder=EncoderIdentity("external", 1, DIMENSION),
        parameters={"tasks": [f"task {i}" for i in range(N_TASKS)], "attributes": None, "n_neighbors": 0},
        parents={},
        metrics={},
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _figures(name: str, catalogue: Catalogue, exploration: Exploration, request: Request) -> Iterator[Figure]:
    rng = np.random.default_rng(1)
    scores, sds = rng.random(N_LLMS), np.full(N_LLMS, 0.2)
    policy = Policy(catalogue=catalogue, exploration=exploration)
    decision = policy.decide(scores, request, score_sds=sds, rng=rng)
    expected = naive_ranking(catalogue.llms, scores.tolist(), request, 0.0)
    check(decision.ranking.tolist() == expected, f"ranking of {name}")
    if isinstance(exploration, Thompson):
        drawn = drawn_largest(scores[expected], sds[expected], N_DRAWS, seed=2)
        error = np.abs(decision.propensities[expected] - drawn).max()
        check(error < 0.01, f"propensities of {name} ({error})")
    times = _times(lambda: policy.decide(scores, request, score_sds=sds, rng=rng))
    yield at_most(f"{name}, median", np.median(times), GOAL_US, "µs")
    yield note(f"{name}, 99 %", float(np.percentile(times, 99)), "µs")


def _times(act: Callable[[], object], n_calls: int = N_DECISIONS) -> list[float]:
    """Microseconds of each of many calls."""
    times = []
    for _ in range(n_calls):
        begin = time.perf_counter()
        act()
        times.append(1e6 * (time.perf_counter() - begin))
    return times


if __name__ == "__main__":
    run_alone("policy", measure)
