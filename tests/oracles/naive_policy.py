"""The policy by its definition: one LLM at a time, one rule at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from router.policy import Llm, Request


def fulfils(
    llm: Llm, request: Request, score: float, cost: float, latency: float = math.nan, *, needs_price: bool
) -> bool:
    if not math.isfinite(score):
        return False
    if request.allowed is not None and llm.name not in request.allowed:
        return False
    if llm.name in request.excluded:
        return False
    if not request.capabilities <= llm.capabilities:
        return False
    limit = math.inf if llm.context_tokens is None else llm.context_tokens
    if request.prompt_tokens + request.answer_tokens > limit:
        return False
    for budget in (request.budget_usd, request.user_budget_usd, request.key_budget_usd):
        if budget is not None and (math.isnan(cost) or cost > max(budget, 0)):
            return False
    if request.max_latency_ms is not None and not latency <= request.max_latency_ms:
        return False
    return not (needs_price and math.isnan(cost))


def cost_of(llm: Llm, request: Request) -> float:
    if llm.input_usd_per_mtok is None or llm.output_usd_per_mtok is None:
        return math.nan
    return (
        llm.input_usd_per_mtok / 1e6 * request.prompt_tokens
        + llm.output_usd_per_mtok / 1e6 * request.answer_tokens
    )


def naive_ranking(
    llms: Sequence[Llm],
    scores: Sequence[float],
    request: Request,
    cost_weight: float,
    latencies: Sequence[float] | None = None,
) -> list[int]:
    """Positions of the candidates, best first; empty where nobody fulfils the request."""
    entries = []
    latencies = [math.nan] * len(llms) if latencies is None else latencies
    for position, (llm, score, latency) in enumerate(zip(llms, scores, latencies, strict=True)):
        cost = cost_of(llm, request)
        if fulfils(llm, request, score, cost, latency, needs_price=cost_weight > 0):
            value = score - cost_weight * cost if cost_weight else score
            entries.append((-value, math.inf if math.isnan(cost) else cost, position))
    return [position for _, _, position in sorted(entries)]


def drawn_largest(
    means: NDArray[np.float64], sds: NDArray[np.float64], n_draws: int, seed: int
) -> NDArray[np.float64]:
    """Share of draws in which each of independent normal variables is the largest, float64 [n]."""
    draws = np.random.default_rng(seed).normal(means, sds, (n_draws, len(means)))
    return np.bincount(draws.argmax(axis=1), minlength=len(means)) / n_draws
