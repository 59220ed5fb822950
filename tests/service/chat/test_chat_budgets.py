from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from router.service.settings import BudgetSettings, ServiceSettings
from router.service.store import period_of
from tests.service.chat.conftest import Caller, serving
from tests.service.fake_upstream import Behaviour, FakeUpstream

BRIEF_USD = (100 * 0.1 + 20 * 0.3) / 1e6  # tokens of the fake's usage, prices of tests/choice_files.py
KIND_USD = (100 * 0.2 + 20 * 0.6) / 1e6


@contextmanager
def with_budget(settings: ServiceSettings, user_usd: float) -> Iterator[Caller]:
    yield from serving(settings.model_copy(update={"budgets": BudgetSettings(user_usd=user_usd)}))


def spent_usd(caller: Caller, subject: str) -> float:
    """Spent and reserved in this month."""
    return caller.service.store.spent_usd([subject], period_of(time.time(), "month"))[subject]


def reported_usd(caller: Caller) -> float:
    """Cost that the metrics tell."""
    lines = caller.client.get("/metrics").text.splitlines()
    return float(
        next(line.split()[1] for line in lines if line.startswith("fairpath_reported_cost_usd_total"))
    )


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_used_is_paid_and_told_to_the_store(caller: Caller, stream: bool) -> None:
    answer = caller.ask("u03", stream=stream)
    store = caller.service.store
    assert spent_usd(caller, "user:u03") == pytest.approx(KIND_USD)
    assert reported_usd(caller) == pytest.approx(KIND_USD)
    assert store.events_of("u03") == []  # a cost is no choice
    like = {"decision_id": answer.headers["x-fairpath-decision-id"], "thumbs": 1, "cost_usd": 5.0}
    assert caller.client.post("/v1/feedback", json=like).status_code == 201
    assert [event.llm for event in store.events_of("u03")] == ["kind"]
    assert spent_usd(caller, "user:u03") == pytest.approx(KIND_USD)  # paid already


def test_feedback_on_a_fallback_is_about_who_answered(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours["up-brief"] = Behaviour("error")
    answer = caller.ask("u02")
    assert spent_usd(caller, "user:u02") == pytest.approx(KIND_USD)
    caller.client.post(
        "/v1/feedback", json={"decision_id": answer.json()["fairpath"]["decision_id"], "thumbs": 1}
    )
    (event,) = caller.service.store.events_of("u02")
    assert event.llm == "kind"
    assert event.offered is not None
    assert "brief" not in event.offered


@pytest.mark.parametrize("fault", ["error", "refuse"])
def test_nothing_is_paid_for_what_did_not_answer(caller: Caller, upstream: FakeUpstream, fault: Any) -> None:
    upstream.behaviours = {f"up-{name}": Behaviour(fault) for name in ("brief", "kind", "third")}
    assert caller.ask("u02").status_code >= 400
    assert spent_usd(caller, "user:u02") == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["hang", "other_json", "break_off"])
def test_a_prompt_that_was_taken_is_paid(
    caller: Caller, upstream: FakeUpstream, fault: Any, stream: bool
) -> None:
    upstream.behaviours["up-brief"] = Behaviour(fault)
    key, token = caller.service.store.create_key("app", ["route"], budget_usd=1.0)
    question = [{"role": "user", "content": "x" * 4000}]
    caller.ask(None, {"X-API-Key": token}, model="brief", messages=question, stream=stream)
    prompt_usd = 1004 * 0.1 / 1e6
    assert prompt_usd <= spent_usd(caller, f"key:{key.key_id}") < 1.1 * prompt_usd


def test_nothing_is_paid_where_nobody_was_reached(chat_settings: ServiceSettings) -> None:
    (reached,) = chat_settings.upstreams
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        elsewhere = reached.model_copy(update={"base_url": url})
        for caller in serving(chat_settings.model_copy(update={"upstreams": (elsewhere,)})):
            answer = caller.ask("u02", model="brief")
            assert (answer.status_code, "ConnectError" in answer.text) == (502, True)
            assert spent_usd(caller, "user:u02") == 0


@pytest.mark.parametrize("several", ["n", "best_of"])
@pytest.mark.parametrize("model", ["auto", "kind"])
def test_all_answers_side_by_side_are_reserved(
    chat_settings: ServiceSettings, upstream: FakeUpstream, model: str, several: str
) -> None:
    one_usd = 100 * 0.6 / 1e6  # of kind's answer; brief's is half of it
    with with_budget(chat_settings, 8 * one_usd) as caller:
        assert caller.ask("u03", model=model, max_tokens=100, **{several: 17}).status_code == 402
        assert upstream.asked() == []
        assert caller.ask("u03", model=model, max_tokens=100, **{several: 2}).status_code == 200
        assert caller.ask("u03", model=model, max_tokens=100, **{several: 129}).status_code == 422


def test_what_came_of_a_stream_that_broke_off_is_paid_by_estimate(
    caller: Caller, upstream: FakeUpstream
) -> None:
    upstream.behaviours["up-brief"] = Behaviour("break_off")
    caller.ask("u02", stream=True)
    assert 0 < spent_usd(caller, "user:u02") < BRIEF_USD


def test_an_answer_without_usage_is_paid_by_estimate(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours["up-brief"] = Behaviour(usage=None)
    caller.ask("u02")
    assert 0 < spent_usd(caller, "user:u02") < 1e-4


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -5, "completion_tokens": 1}, {"prompt_tokens": "many"}, {}]
)
def test_usage_that_is_no_count_is_not_believed(caller: Caller, upstream: FakeUpstream, usage: Any) -> None:
    upstream.behaviours["up-brief"] = Behaviour(usage=usage)
    assert caller.ask("u02").status_code == 200
    assert 0 < spent_usd(caller, "user:u02") < 1e-4


def test_a_budget_leads_to_a_cheaper_llm_and_then_to_a_clear_end(chat_settings: ServiceSettings) -> None:
    expected_usd = 256 * 0.6 / 1e6  # of kind's answer, as long as the settings expect
    with with_budget(chat_settings, 0.8 * expected_usd) as caller:
        first = caller.ask("u03")
        assert (first.status_code, first.json()["model"]) == (200, "brief")
        answers = [caller.ask("u03") for _ in range(4)]
        error = answers[-1].json()["error"]
        assert (answers[-1].status_code, error["type"]) == (402, "insufficient_quota")
        assert error["code"] == "budget_spent"
        assert "USD left" in answers[-1].json()["error"]["message"]
        assert spent_usd(caller, "user:u03") <= 0.8 * expected_usd
        assert caller.ask("u02").status_code == 200  # others have their own


def test_a_reservation_that_is_refused_is_a_fallback_too(
    chat_settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may spend between the decision and the reservation."""
    with with_budget(chat_settings, 1.0) as caller:
        reserve = caller.service.store.reserve
        period = period_of(time.time(), "month")

        def late(budgets: Any, period_now: str, usd: float) -> str | None:
            if not caller.service.store.spent_usd(["user:u03"], period)["user:u03"]:
                other = reserve({"user:u03": None}, period, 1.0 - 1.2e-4)
                assert other is not None
            return reserve(budgets, period_now, usd)

        monkeypatch.setattr(caller.service.store, "reserve", late)
        answer = caller.ask("u03")
        assert (answer.status_code, answer.json()["model"]) == (200, "brief")
        assert answer.json()["fairpath"]["failed"] == [{"llm": "kind", "reason": "budget"}]
        spent = reserve({"user:u03": None}, period, 1.0)
        assert spent is not None
        named = caller.ask("u03", model="brief")
        assert (named.status_code, named.json()["error"]["code"]) == (402, "budget_spent")


def test_a_bound_on_the_answer_is_reserved_but_not_expected(
    chat_settings: ServiceSettings, upstream: FakeUpstream
) -> None:
    bound = 10**7
    with with_budget(chat_settings, 1.0) as caller:
        plain, bounded = (
            caller.ask("u03", fairpath={"max_cost_usd": 0.0003}, **told)
            for told in ({}, {"max_tokens": 4096})
        )
        assert (plain.json()["model"], bounded.json()["model"]) == ("kind", "kind")
        refused = caller.ask("u03", max_tokens=bound, fairpath={"candidates": ["brief", "kind"]})
    assert refused.status_code == 402  # an answer of 3 USD might come
    with with_budget(chat_settings, 10.0) as caller:
        decided = caller.ask("u03", max_tokens=bound).json()["fairpath"]["decision_id"]
        record = caller.service.store.decision(decided)
    assert record is not None
    assert record.cost_usd == pytest.approx(256 * 0.6 / 1e6, rel=0.1)


def test_a_cost_is_counted_once(caller: Caller) -> None:
    decided = caller.ask("u02").json()["fairpath"]["decision_id"]
    paid = reported_usd(caller)
    for _ in range(2):
        told = caller.client.post("/v1/feedback", json={"decision_id": decided, "cost_usd": 0.5})
        assert told.status_code == 201
    assert reported_usd(caller) == paid > 0


def test_a_key_pays_for_models_that_pass_through(caller: Caller) -> None:
    key, token = caller.service.store.create_key("app", ["route"], budget_usd=1.0)
    headers = {"X-API-Key": token}
    assert caller.ask(None, headers, model="kind").status_code == 200
    assert spent_usd(caller, f"key:{key.key_id}") == pytest.approx(KIND_USD)
    unpriced = caller.ask(None, headers, model="unlisted")
    assert (unpriced.status_code, "no known price" in unpriced.text) == (402, True)
    assert caller.ask("u02", headers, model="auto").status_code == 200
    assert spent_usd(caller, f"key:{key.key_id}") == pytest.approx(KIND_USD + BRIEF_USD)
