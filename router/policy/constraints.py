"""What a request demands of an LLM, and which LLMs it leaves out for which reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.errors import ParameterError
from router.policy.catalogue import Catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Demands of one request; the defaults demand nothing.

    Parameters
    ----------
    prompt_tokens
        Length of the prompt.
    answer_tokens
        Room to leave for the answer. Prompt and answer have to fit into the context.
    capabilities
        What the LLM has to be able to do, such as ``"tools"``.
    allowed
        Names of the LLMs to choose from, or None for all.
    excluded
        Names of LLMs not to choose.
    reachable
        Names of the LLMs that an upstream has, or None where that does not matter.
    budget_usd
        Most that this request may cost, or None for no limit.
    user_budget_usd
        What the user has left to spend, or None for no limit. Once it is overdrawn, only LLMs that cost
        nothing remain.
    key_budget_usd
        The same for the API key of the request.
    max_latency_ms
        Longest that an answer may take, or None for no limit. With one, LLMs of unknown latency are left out.

    Raises
    ------
    ParameterError
        A value breaks its rule.
    """

    prompt_tokens: int = 0
    answer_tokens: int = 0
    capabilities: frozenset[str] = frozenset()
    allowed: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    reachable: frozenset[str] | None = None
    budget_usd: float | None = None
    user_budget_usd: float | None = None
    key_budget_usd: float | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "answer_tokens"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ParameterError(f"{name!r} must be finite and not negative (got {value})")
        for name in ("capabilities", "allowed", "excluded", "reachable"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ParameterError(f"{name!r} must be a set of names (got {value!r})")
            if value is not None:
                object.__setattr__(self, name, frozenset(value))
        for name in ("budget_usd", "max_latency_ms"):
            if (limit := getattr(self, name)) is not None and not limit >= 0:
                raise ParameterError(f"{name!r} must not be negative (got {limit})")
        for name in ("user_budget_usd", "key_budget_usd"):
            if (left := getattr(self, name)) is not None and math.isnan(left):
                raise ParameterError(f"{name!r} must be a number (got {left})")


class Exclusion(NamedTuple):
    """One constraint: whom it leaves out, and how to say why of one of them.

    Attributes
    ----------
    excluded
        bool [m].
    why
        From the position of an excluded LLM to a clause whose subject is the LLM.
    """

    excluded: NDArray[np.bool_]
    why: Callable[[int], str]


def find_exclusions(
    catalogue: Catalogue,
    request: Request,
    scores: NDArray[np.float64],
    cost_usd: NDArray[np.float64],
    latency_ms: NDArray[np.float64] | None = None,
    *,
    needs_price: bool,
) -> list[Exclusion]:
    """Apply all constraints.

    Parameters
    ----------
    catalogue
        The LLMs.
    request
        Its demands.
    scores
        float64 [m]; an LLM whose score is not finite cannot be ranked.
    cost_usd
        Expected cost of the request with each LLM, NaN where unknown, float64 [m].
    latency_ms
        Expected latency of each LLM in milliseconds, NaN where unknown, float64 [m]; None: of none.
    needs_price
        Whether an LLM of unknown cost is left out even without a budget.

    Returns
    -------
    list of Exclusion
        One per constraint that applies, whether or not it leaves anyone out.

    Raises
    ------
    UnknownNameError
        The request names an LLM that is not in the catalogue.
    """
    return [
        Exclusion(~np.isfinite(scores), lambda i: "has no score"),
        *_named(catalogue, request),
        *_abilities(catalogue, request),
        *_costs(request, cost_usd, needs_price),
        *_latency(request.max_latency_ms, latency_ms, len(catalogue)),
    ]


def _named(catalogue: Catalogue, request: Request) -> Iterator[Exclusion]:
    if request.reachable is not None:
        yield Exclusion(~catalogue.mask(request.reachable), lambda i: "has no upstream")
    if request.allowed is not None:
        yield Exclusion(~catalogue.mask(request.allowed), lambda i: "is not among the allowed LLMs")
    if request.excluded:
        yield Exclusion(catalogue.mask(request.excluded), lambda i: "is excluded by the request")


def _abilities(catalogue: Catalogue, request: Request) -> Iterator[Exclusion]:
    for name in sorted(request.capabilities):
        yield Exclusion(catalogue.lacks(name), lambda i, name=name: f"lacks {name}")  # type: ignore[misc]
    tokens, limits = request.prompt_tokens + request.answer_tokens, catalogue.context_tokens
    yield Exclusion(limits < tokens, lambda i: f"has a context of {limits[i]:.0f} tokens ({tokens} needed)")


def _costs(request: Request, cost_usd: NDArray[np.float64], needs_price: bool) -> Iterator[Exclusion]:
    budgets = [
        ("the request's budget is {:.3g} USD", request.budget_usd),
        ("the user has {:.3g} USD left", request.user_budget_usd),
        ("the key has {:.3g} USD left", request.key_budget_usd),
    ]
    for told, budget in budgets:
        if budget is not None:
            yield _over_budget(told, max(budget, 0.0), cost_usd)
    if needs_price or any(budget is not None for _, budget in budgets):
        yield Exclusion(np.isnan(cost_usd), lambda i: "has no known price")


def _over_budget(told: str, budget: float, cost_usd: NDArray[np.float64]) -> Exclusion:
    def why(i: int) -> str:
        return f"costs {cost_usd[i]:.3g} USD ({told.format(budget)})"

    return Exclusion(cost_usd > budget, why)


def _latency(
    limit_ms: float | None, latency_ms: NDArray[np.float64] | None, n_llms: int
) -> Iterator[Exclusion]:
    if limit_ms is None:
        return
    expected_ms = np.full(n_llms, np.nan) if latency_ms is None else latency_ms

    def why(i: int) -> str:
        return f"takes {expected_ms[i]:.0f} ms (the limit is {limit_ms:.0f} ms)"

    yield Exclusion(expected_ms > limit_ms, why)
    yield Exclusion(np.isnan(expected_ms), lambda i: "has no known latency")
