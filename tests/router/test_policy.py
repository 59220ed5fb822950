"""Constraints, ranking, fallbacks and reasons, against the rules written out one by one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import DataError, NoCandidateError, ParameterError, UnknownNameError
from router.policy import Catalogue, EpsilonGreedy, Llm, Policy, Request
from tests.oracles.naive_policy import cost_of, fulfils, naive_ranking

ABILITIES = ["tools", "vision"]
PRICES = st.sampled_from([None, 0.0, 0.5, 1.0, 2.0])
MARKET = Catalogue(
    [
        Llm(name="small", input_usd_per_mtok=0.1, output_usd_per_mtok=0.1, context_tokens=8_000),
        Llm(
            name="large",
            input_usd_per_mtok=10.0,
            output_usd_per_mtok=30.0,
            context_tokens=128_000,
            capabilities=frozenset({"tools", "vision"}),
        ),
        Llm(
            name="middle",
            input_usd_per_mtok=1.0,
            output_usd_per_mtok=2.0,
            context_tokens=32_000,
            capabilities=frozenset({"tools"}),
        ),
        Llm(name="unpriced"),
    ]
)
SCORES = np.array([0.3, 0.9, 0.6, 0.5])


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Llm], list[float], Request, float, list[float]]:
    n_llms = draw(st.integers(1, 7))
    llms = [
        Llm(
            name=f"llm-{i}",
            input_usd_per_mtok=draw(PRICES),
            output_usd_per_mtok=draw(PRICES),
            context_tokens=draw(st.sampled_from([None, 1000, 2000])),
            capabilities=frozenset(draw(st.sets(st.sampled_from(ABILITIES)))),
        )
        for i in range(n_llms)
    ]
    names = st.sets(st.sampled_from([llm.name for llm in llms]))
    budgets = st.sampled_from([None, 0.0, 0.001, 0.002, 1.0])
    request = Request(
        prompt_tokens=draw(st.sampled_from([0, 500, 1000, 1500])),
        answer_tokens=draw(st.sampled_from([0, 500, 1000])),
        capabilities=frozenset(draw(st.sets(st.sampled_from(ABILITIES), max_size=1))),
        allowed=draw(st.none() | names.map(frozenset)),
        excluded=frozenset(draw(names)) if draw(st.booleans()) else frozenset(),
        budget_usd=draw(budgets),
        user_budget_usd=draw(budgets | st.just(-0.5)),
        key_budget_usd=draw(st.none() | budgets),
        max_latency_ms=draw(st.sampled_from([None, None, 0.0, 100.0, 300.0])),
    )
    # Few values, so that ties are there.
    scores = draw(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), min_size=n_llms, max_size=n_llms)
    )
    latencies = draw(
        st.lists(st.sampled_from([50.0, 100.0, 200.0, math.nan]), min_size=n_llms, max_size=n_llms)
    )
    return llms, scores, request, draw(st.sampled_from([0.0, 0.0, 100.0])), latencies


@settings(max_examples=400, deadline=None, derandomize=True)
@given(situation=situations(), n_fallbacks=st.integers(0, 3))
def test_against_brute_force(
    situation: tuple[list[Llm], list[float], Request, float, list[float]], n_fallbacks: int
) -> None:
    llms, scores, request, cost_weight, latencies = situation
    policy = Policy(catalogue=Catalogue(llms), cost_weight=cost_weight, n_fallbacks=n_fallbacks)
    expected = naive_ranking(llms, scores, request, cost_weight, latencies)
    if not expected:
        with pytest.raises(NoCandidateError) as caught:
            policy.decide(scores, request, latency_ms=latencies)
        assert all(llm.name in str(caught.value) for llm in llms)
        assert caught.value.left_out.keys() == {llm.name for llm in llms}
        return
    decision = policy.decide(scores, request, latency_ms=latencies)
    assert decision.ranking.tolist() == expected
    assert decision.llm == llms[expected[0]].name
    assert decision.fallback_llms == [llms[i].name for i in expected[1 : n_fallbacks + 1]]
    assert decision.propensity == 1
    left_out = {
        llm.name
        for llm, score, latency in zip(llms, scores, latencies, strict=True)
        if not fulfils(llm, request, score, cost_of(llm, request), latency, needs_price=cost_weight > 0)
    }
    assert decision.left_out().keys() == left_out
    json.dumps(decision.to_json(), allow_nan=False)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(situation=situations(), seed=st.integers(0, 1000))
def test_explored_choices_and_their_fallbacks_are_candidates(
    situation: tuple[list[Llm], list[float], Request, float, list[float]], seed: int
) -> None:
    llms, scores, request, _, latencies = situation
    expected = naive_ranking(llms, scores, request, 0.0, latencies)
    if not expected:
        return
    policy = Policy(catalogue=Catalogue(llms), exploration=EpsilonGreedy(0.5), n_fallbacks=2)
    decision = policy.decide(scores, request, latency_ms=latencies, rng=np.random.default_rng(seed))
    assert decision.chosen in expected
    assert decision.fallbacks.tolist() == [i for i in expected if i != decision.chosen][:2]
    assert np.flatnonzero(decision.propensities).tolist() == sorted(expected)
    assert decision.explored == (decision.chosen != expected[0])


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (Request(), ["large", "middle", "unpriced", "small"]),
        (Request(capabilities=frozenset({"tools"})), ["large", "middle"]),
        (Request(prompt_tokens=30_000, answer_tokens=2_001), ["large", "unpriced"]),
        (Request(prompt_tokens=1_000, answer_tokens=1_000, budget_usd=0.003), ["middle", "small"]),
        (Request(prompt_tokens=1_000, answer_tokens=1_000, user_budget_usd=0.001), ["small"]),
        (Request(excluded=frozenset({"large", "unpriced"})), ["middle", "small"]),
        (Request(allowed=frozenset({"unpriced", "small"})), ["unpriced", "small"]),
        (Request(capabilities=frozenset({"tools"}), excluded=frozenset({"large"})), ["middle"]),
    ],
)
def test_each_constraint(request_: Request, names: list[str]) -> None:
    decision = Policy(catalogue=MARKET, n_fallbacks=10).decide(SCORES, request_)
    assert [decision.llm, *decision.fallback_llms] == names


def test_an_overdrawn_user_gets_what_costs_nothing() -> None:
    free = Catalogue([Llm(name="free", input_usd_per_mtok=0.0, output_usd_per_mtok=0.0), *MARKET.llms])
    request = Request(prompt_tokens=10, user_budget_usd=-1.0)
    decision = Policy(catalogue=free).decide([0.0, *SCORES], request)
    assert (decision.llm, decision.fallback_llms) == ("free", [])


def test_unknown_latency_counts_only_under_a_limit() -> None:
    latencies = [400.0, 900.0, math.nan, math.nan]
    policy = Policy(catalogue=MARKET)
    assert policy.decide(SCORES, latency_ms=latencies).llm == "large"
    decision = policy.decide(SCORES, Request(max_latency_ms=500.0), latency_ms=latencies)
    assert [MARKET.names[i] for i in decision.ranking] == ["small"]
    assert decision.left_out() == {
        "large": ["takes 900 ms (the limit is 500 ms)"],
        "middle": ["has no known latency"],
        "unpriced": ["has no known latency"],
    }
    with pytest.raises(NoCandidateError, match="small has no known latency; large has no"):
        policy.decide(SCORES, Request(max_latency_ms=500.0))


@pytest.mark.parametrize(
    ("incumbent", "margin", "request_", "llm"),
    [
        ("middle", 0.31, Request(), "middle"),
        ("middle", 0.29, Request(), "large"),
        ("large", 0.0, Request(), "large"),
        ("middle", 9.0, Request(excluded={"middle"}), "large"),
        ("retired", 9.0, Request(), "large"),
    ],
)
def test_an_incumbent_stays_unless_another_is_clearly_better(
    incumbent: str, margin: float, request_: Request, llm: str
) -> None:
    policy = Policy(catalogue=MARKET, exploration=EpsilonGreedy(0.0))
    decision = policy.decide(
        SCORES, request_, incumbent=incumbent, incumbent_margin=margin, rng=np.random.default_rng(0)
    )
    assert (decision.llm, decision.kept, decision.explored) == (llm, llm == incumbent, False)
    assert decision.propensity == 1
    assert llm not in decision.fallback_llms


def test_an_incumbent_that_stays_is_not_drawn_against() -> None:
    policy = Policy(catalogue=MARKET, exploration=EpsilonGreedy(1.0))
    draws = [policy.decide(SCORES, incumbent="middle", incumbent_margin=1.0) for _ in range(20)]
    assert {decision.llm for decision in draws} == {"middle"}
    assert draws[0].reason() == (
        "middle stays (score 0.60); the best of 4 candidates, large (score 0.90), is not clearly better."
    )
    np.testing.assert_array_equal(draws[0].propensities, [0, 0, 1, 0])


def test_given_costs_stand_in_for_prices() -> None:
    request = Request(budget_usd=0.01)
    costs = [0.02, 0.01, 0.011, math.nan]
    assert Policy(catalogue=MARKET).decide(SCORES, request, cost_usd=costs).llm == "large"


def test_cost_weight_trades_score_for_price() -> None:
    request = Request(prompt_tokens=1_000, answer_tokens=1_000)  # 0.0002, 0.04, 0.003 USD
    chosen = [
        Policy(catalogue=MARKET, cost_weight=weight).decide(SCORES, request).llm
        for weight in (0.0, 8.0, 9.0, 107.0, 108.0)
    ]
    assert chosen == ["large", "large", "middle", "middle", "small"]


def test_ties_go_to_the_cheaper_then_the_earlier() -> None:
    decision = Policy(catalogue=MARKET, n_fallbacks=3).decide(np.full(4, 0.5), Request(prompt_tokens=100))
    assert [decision.llm, *decision.fallback_llms] == ["small", "middle", "large", "unpriced"]
    decision = Policy(catalogue=MARKET, n_fallbacks=3).decide(np.full(4, 0.5))
    assert [decision.llm, *decision.fallback_llms] == ["small", "large", "middle", "unpriced"]


def test_without_a_candidate_every_reason_is_named() -> None:
    request = Request(
        prompt_tokens=9_000,
        answer_tokens=1_000,
        capabilities=frozenset({"tools"}),
        excluded=frozenset({"middle"}),
        budget_usd=0.05,
    )
    with pytest.raises(NoCandidateError) as caught:
        Policy(catalogue=MARKET).decide([0.3, 0.9, 0.6, math.nan], request)
    assert str(caught.value) == (
        "no LLM fulfils the request's constraints: "
        "small lacks tools, has a context of 8000 tokens (10000 needed); "
        "large costs 0.12 USD (the request's budget is 0.05 USD); "
        "middle is excluded by the request; "
        "unpriced has no score, lacks tools, has no known price"
    )


def test_reasons_hold_the_facts() -> None:
    policy = Policy(catalogue=MARKET)
    base = np.array([0.7, 0.65, 0.2, 0.1])
    assert policy.decide(SCORES).reason() == "large has the best score of 4 candidates (0.90; middle 0.60)."
    assert policy.decide(SCORES, base_scores=base).reason() == (
        "large has the best score of 4 candidates (0.90; middle 0.60); "
        "for an unknown user 0.65, behind small."
    )
    request = Request(prompt_tokens=1_000, answer_tokens=1_000, budget_usd=0.01, excluded={"unpriced"})
    decision = policy.decide(SCORES, request, base_scores=base)
    assert decision.reason() == (
        "middle has the best score of 2 candidates (0.60; small 0.30); "
        "for an unknown user 0.20, behind small. "
        "Ranked higher but left out: large costs 0.04 USD (the request's budget is 0.01 USD)."
    )
    assert decision.left_out()["unpriced"] == ["is excluded by the request", "has no known price"]
    only = policy.decide(SCORES, Request(allowed={"small"}))
    assert only.reason() == (
        "small is the only candidate. Ranked higher but left out: large is not among the "
        "allowed LLMs; middle is not among the allowed LLMs; unpriced is not among the allowed LLMs."
    )
    cheap = Policy(catalogue=MARKET, cost_weight=100.0).decide(SCORES, Request(prompt_tokens=1_000))
    assert cheap.reason() == "middle is the best of 3 candidates for its price (score 0.60, 0.001 USD)."


def test_the_reason_says_when_a_choice_was_drawn() -> None:
    policy = Policy(catalogue=MARKET, exploration=EpsilonGreedy(1.0))
    draws = [policy.decide(SCORES, rng=np.random.default_rng(seed)) for seed in range(20)]
    explored = next(decision for decision in draws if decision.llm == "middle")
    assert explored.explored
    assert explored.reason() == (
        "middle (score 0.60) was drawn to learn more about it, with probability 0.25; "
        "the best of 4 candidates is large (score 0.90)."
    )


def test_base_scores_that_are_not_known_are_left_unsaid() -> None:
    decision = Policy(catalogue=MARKET).decide(SCORES, base_scores=[math.nan, 0.1, 0.1, 0.1])
    assert "unknown user" not in decision.reason()


def test_nothing_known_is_left_unsaid() -> None:
    decision = Policy(catalogue=MARKET).decide(SCORES, base_scores=SCORES)
    assert "unknown user" not in decision.reason()


def test_logits_are_told_as_probabilities_among_the_candidates() -> None:
    scores, base = np.log([0.1, 0.6, 0.2, 0.1]), np.log([0.4, 0.2, 0.2, 0.2])
    request = Request(excluded={"unpriced"})
    decision = Policy(catalogue=MARKET).decide(
        scores, request, base_scores=base, cost_usd=np.zeros(4), choice_logits=True
    )
    np.testing.assert_allclose(decision.chances, [1 / 9, 6 / 9, 2 / 9, 0.0])
    assert decision.reason() == (
        "large is the likeliest choice of 3 candidates (67 %; middle 22 %); "
        "for an unknown user 25 %, behind small."
    )


def test_large_logits_do_not_overflow() -> None:
    decision = Policy(catalogue=MARKET).decide([1e4, -1e4, 0.0, np.nan], choice_logits=True)
    np.testing.assert_array_equal(decision.chances, [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("field", ["allowed", "excluded"])
def test_unknown_names_are_refused(field: str) -> None:
    request = Request(**{field: frozenset({"huge"})})  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown LLM 'huge'; the catalogue has small, large"):
        Policy(catalogue=MARKET).decide(SCORES, request)


def test_a_capability_that_nobody_has() -> None:
    with pytest.raises(NoCandidateError, match="small lacks telepathy; large lacks telepathy"):
        Policy(catalogue=MARKET).decide(SCORES, Request(capabilities={"telepathy"}))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Llm(name=""), DataError, "'name' of an LLM must be"),
        (lambda: Llm(name="a", input_usd_per_mtok=-1.0), DataError, "'a': 'input_usd_per_mtok' must be fin"),
        (lambda: Llm(name="a", output_usd_per_mtok=math.inf), DataError, "'output_usd_per_mtok' must be fin"),
        (lambda: Llm(name="a", context_tokens=0), DataError, r"'context_tokens' must be positive \(got 0\)"),
        (lambda: Llm.from_json({"name": "a", "colour": 1}), DataError, "LLM 'a': .*'colour'"),
        (lambda: Llm.from_json({"name": "a", "capabilities": "tools"}), DataError, "must be a list"),
        (lambda: Catalogue([]), DataError, "at least one LLM"),
        (lambda: Catalogue([Llm(name="a"), Llm(name="a")]), DataError, "'a' appears twice"),
        (lambda: Request(prompt_tokens=-1), ParameterError, "'prompt_tokens' must be finite and not neg"),
        (lambda: Request(budget_usd=-0.1), ParameterError, r"'budget_usd' must not be negative \(got -0.1"),
        (lambda: Request(max_latency_ms=-1.0), ParameterError, "'max_latency_ms' must not be negative"),
        (lambda: Request(key_budget_usd=math.nan), ParameterError, "'key_budget_usd' must be a number"),
        (lambda: Request(user_budget_usd=math.nan), ParameterError, "'user_budget_usd' must be a number"),
        (lambda: Request(capabilities="tools"), ParameterError, "'capabilities' must be a set of names"),
        (lambda: Policy(catalogue=MARKET, cost_weight=-1.0), ParameterError, "'cost_weight' must be"),
        (lambda: Policy(catalogue=MARKET, n_fallbacks=-1), ParameterError, "'n_fallbacks' must not be"),
        (
            lambda: Policy(catalogue=MARKET).decide([0.1, 0.2]),
            ParameterError,
            r"'scores' must have one entry per LLM, \[4\] \(got \[2\]\)",
        ),
        (
            lambda: Policy(catalogue=MARKET).decide(SCORES, cost_usd=[0.1]),
            ParameterError,
            "'cost_usd' must have one entry per LLM",
        ),
    ],
)
def test_bad_input(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_llms_survive_json() -> None:
    for llm in MARKET.llms:
        assert Llm.from_json(json.loads(json.dumps(llm.to_json()))) == llm
