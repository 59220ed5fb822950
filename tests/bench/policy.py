"""Time of one decision among 50 LLMs on one core, constraints, costs and exploration included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from harness import Figure, at_most, check, note, pin_to_one_core, run_alone

from router.policy import Catalogue, EpsilonGreedy, Exploration, Greedy, Llm, Policy, Request, Thompson
from tests.oracles.naive_policy import drawn_largest, naive_ranking

N_LLMS = 50
N_DECISIONS = 3000
GOAL_US = 100.0
N_DRAWS = 100_000
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
    return [
        figure
        for name, exploration in STRATEGIES.items()
        for demands, request in requests.items()
        for figure in _figures(f"{name}, {demands}", catalogue, exploration, request)
    ]


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


def _times(act: Callable[[], object]) -> list[float]:
    """Microseconds of each of many calls."""
    times = []
    for _ in range(N_DECISIONS):
        begin = time.perf_counter()
        act()
        times.append(1e6 * (time.perf_counter() - begin))
    return times


if __name__ == "__main__":
    run_alone("policy", measure)
