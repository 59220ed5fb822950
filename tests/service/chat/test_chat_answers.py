from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import structlog

from router.service.settings import ServiceSettings, UpstreamSettings
from tests.service.chat.conftest import MODELS, QUESTION, SECRET, Caller, serving
from tests.service.fake_upstream import USAGE, Behaviour, FakeUpstream, Fault

with_caller = contextmanager(serving)


@pytest.mark.parametrize(("user", "llm"), [("u02", "brief"), ("u03", "kind")])
def test_auto_asks_the_llm_that_the_user_prefers(
    caller: Caller, upstream: FakeUpstream, user: str, llm: str
) -> None:
    answer = caller.ask(user)
    body = answer.json()
    assert answer.status_code == 200
    assert upstream.asked() == [MODELS[llm]]
    assert body["model"] == llm
    assert body["choices"][0]["message"]["content"] == "Hello there."
    assert body["usage"] == USAGE
    decided = body["fairpath"]
    assert decided["llm"] == llm
    assert decided["failed"] == []
    assert decided["based_on"] == "trained"
    assert llm in decided["why"]
    headers = {
        name: answer.headers[f"x-fairpath-{name}"]
        for name in ("model", "decision-id", "release", "fallbacks")
    }
    assert headers == {
        "model": llm,
        "decision-id": decided["decision_id"],
        "release": decided["release"],
        "fallbacks": "",
    }
    record = caller.service.store.decision(decided["decision_id"])
    assert (record.user, record.llm, record.endpoint) == (user, llm, "chat")


def test_only_what_the_upstream_is_to_know_is_forwarded(caller: Caller, upstream: FakeUpstream) -> None:
    caller.ask(
        headers={"Authorization": "", "X-API-Key": "", "X-Custom": "mine", "Cookie": "a=b"},
        temperature=0.25,
        fairpath={"exclude": ["kind"]},
        metadata={"session_id": "s1"},
    )
    (received,) = upstream.received
    assert received.path == "/v1/chat/completions"
    assert received.body == {"model": "up-brief", "messages": QUESTION, "user": "u02", "temperature": 0.25}
    assert received.headers["authorization"] == f"Bearer {SECRET}"
    assert not {"x-custom", "cookie", "x-api-key"} & received.headers.keys()


def test_the_callers_key_is_never_forwarded(chat_settings: ServiceSettings, upstream: FakeUpstream) -> None:
    with with_caller(chat_settings) as caller:
        _, token = caller.service.store.create_key("app", ["route"])
        answer = caller.ask(headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    assert upstream.received[0].headers["authorization"] == f"Bearer {SECRET}"
    assert token not in str(upstream.received)


@pytest.mark.parametrize(
    "fault", ["hang", "error", "busy", "wrong_key", "nonsense", "other_json", "break_off"]
)
def test_the_next_candidate_stands_in_for_an_llm_that_fails(
    caller: Caller, upstream: FakeUpstream, fault: Fault
) -> None:
    upstream.behaviours["up-brief"] = Behaviour(fault)
    answer = caller.ask("u02")
    decided = answer.json()["fairpath"]
    assert answer.status_code == 200
    assert upstream.asked() == ["up-brief", "up-kind"]
    assert answer.json()["model"] == answer.headers["x-fairpath-model"] == "kind"
    assert answer.headers["x-fairpath-fallbacks"] == "brief"
    reasons = {
        "hang": "timeout",
        "nonsense": "malformed",
        "other_json": "malformed",
        "break_off": "broken_off",
    }
    assert decided["failed"] == [{"llm": "brief", "reason": reasons.get(fault, "status")}]
    record = caller.service.store.decision(decided["decision_id"])
    assert (record.llm, record.propensity) == ("kind", 1.0)
    assert "brief" not in record.offered
    metrics = caller.client.get("/metrics").text
    assert f'from_llm="brief",reason="{reasons.get(fault, "status")}",to_llm="kind"' in metrics


def test_an_upstream_that_is_down_is_a_failure(service_settings: ServiceSettings) -> None:
    down = UpstreamSettings(name="down", base_url="http://127.0.0.1:1/v1", models={"brief": "x", "kind": "y"})
    with with_caller(service_settings.model_copy(update={"upstreams": (down,)})) as caller:
        answer = caller.ask()
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert error["type"] == "upstream_error"
    assert "'brief': ConnectError" in error["message"]
    assert "127.0.0.1" not in error["message"]


@pytest.mark.parametrize(
    ("fault", "stream", "reason"), [("error", False, "status"), ("break_off", True, "broken_off")]
)
def test_a_failure_is_logged_and_counted(
    caller: Caller, upstream: FakeUpstream, fault: Fault, stream: bool, reason: str
) -> None:
    upstream.behaviours["up-brief"] = Behaviour(fault)
    with structlog.testing.capture_logs() as logs:
        caller.ask("u02", stream=stream)
    (told,) = [entry for entry in logs if entry["event"] == "an upstream failed"]
    assert (told["log_level"], told["upstream"], told["llm"], told["reason"]) == (
        "warning",
        "fake",
        "brief",
        reason,
    )
    assert SECRET not in str(logs)
    counted = f'fairpath_upstream_failures_total{{llm="brief",reason="{reason}",upstream="fake"}} 1.0'
    assert counted in caller.client.get("/metrics").text


def test_models_that_the_catalogue_lacks_are_told_at_the_start(chat_settings: ServiceSettings) -> None:
    with structlog.testing.capture_logs() as logs, with_caller(chat_settings):
        pass
    (told,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert told["models"] == ["unlisted"]
    assert told["catalogue"] == ["brief", "kind", "unused-price"]


def test_all_out_of_time_is_a_timeout(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours = {name: Behaviour("hang") for name in MODELS.values()}
    answer = caller.ask()
    assert answer.status_code == 504
    assert "'brief': no answer within the time limit" in answer.json()["error"]["message"]


def test_the_callers_own_mistake_is_passed_through_without_a_fallback(
    caller: Caller, upstream: FakeUpstream
) -> None:
    upstream.behaviours["up-brief"] = Behaviour("refuse")
    answer = caller.ask()
    assert answer.status_code == 400
    assert upstream.asked() == ["up-brief"]
    assert answer.json() == {
        "error": {
            "message": "wrong request of Bearer ***",
            "type": "fake_error",
            "param": "top_p",
            "code": None,
        }
    }


def test_secrets_are_in_no_answer_log_or_repr(
    caller: Caller, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    upstream.behaviours = {name: Behaviour("wrong_key") for name in MODELS.values()}
    answer = caller.ask()
    assert answer.status_code == 502
    shown = (
        answer.text
        + caplog.text
        + repr(caller.service.chat._upstreams.targets)
        + repr(caller.service.settings)
    )
    assert SECRET not in shown


def test_an_answer_that_is_too_long_is_a_failure(
    caller: Caller, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.service.upstreams.MAX_ANSWER_BYTES", 5000)
    upstream.behaviours["up-brief"] = Behaviour(words=("x" * 6000,))
    assert caller.ask().json()["fairpath"]["failed"] == [{"llm": "brief", "reason": "malformed"}]


def test_another_name_passes_through(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours["up-unlisted"] = Behaviour(words=("unchanged",))
    answer = caller.ask(model="unlisted", messages=QUESTION)
    assert answer.status_code == 200
    assert upstream.asked() == ["up-unlisted"]
    assert answer.json()["model"] == "up-unlisted"
    assert "fairpath" not in answer.json()
    assert answer.headers["x-fairpath-model"] == "unlisted"
    assert "x-fairpath-decision-id" not in answer.headers


def test_a_named_model_has_no_fallback(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours["up-brief"] = Behaviour("error")
    assert caller.ask(model="brief").status_code == 502
    assert upstream.asked() == ["up-brief"]


@pytest.mark.parametrize("model", ["nobody", "auto2"])
def test_an_unknown_model_is_not_found(caller: Caller, model: str) -> None:
    answer = caller.ask(model=model)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "model",
        "model_not_found",
    )


def test_without_upstreams_there_is_nothing_to_choose_from(service_settings: ServiceSettings) -> None:
    with with_caller(service_settings) as caller:
        answer = caller.ask()
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        for way in ("[[serve.upstreams]]", "--stand-in"):
            assert way in answer.json()["error"]["message"]
        assert caller.client.get("/v1/models").json() == {"object": "list", "data": []}


def test_only_llms_that_an_upstream_has_are_candidates(
    chat_settings: ServiceSettings, upstream: FakeUpstream
) -> None:
    (reached,) = chat_settings.upstreams
    only = reached.model_copy(update={"models": {"kind": "up-kind"}})
    with with_caller(chat_settings.model_copy(update={"upstreams": (only,)})) as caller:
        assert caller.ask("u02").json()["model"] == "kind"
        refused = caller.ask("u02", fairpath={"candidates": ["brief"]})
    assert (refused.status_code, upstream.asked()) == (422, ["up-kind"])
    assert "brief has no upstream" in refused.json()["error"]["message"]


def test_demands_come_in_the_body_or_in_headers(caller: Caller) -> None:
    assert caller.ask("u02", fairpath={"exclude": ["brief"]}).json()["model"] != "brief"
    assert caller.ask("u02", {"X-Fairpath-Candidates": "kind, unused-price"}).json()["model"] == "kind"
    both = caller.ask("u02", {"X-Fairpath-Exclude": "brief"}, fairpath={"exclude": ["kind"]})
    assert both.json()["model"] == "brief"


def test_a_wrong_request_is_told_so_and_nobody_is_asked(caller: Caller, upstream: FakeUpstream) -> None:
    vision = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    wrong = [
        ({"fairpath": {"candidates": ["gpt-0"]}}, "unknown LLM 'gpt-0'"),
        ({"fairpath": {"exclude": ["gpt-0"]}}, "unknown LLM 'gpt-0'"),
        ({"fairpath": {"max_cost_usd": 0}}, "costs"),
        ({"tools": [{"type": "function"}]}, "lacks tools"),
        ({"messages": [{"role": "user", "content": vision}]}, "lacks vision"),
        ({"messages": "hello"}, "messages"),
    ]
    for fields, told in wrong:
        answer = caller.ask(**fields)
        assert answer.status_code == 422
        assert told in answer.json()["error"]["message"]
    for content in (b"", b"{", b"[]"):
        said = {"Content-Type": "application/json"}
        answer = caller.client.post("/v1/chat/completions", content=content, headers=said)
        assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_request_error")
    assert upstream.asked() == []


def test_models_lists_what_a_chat_may_name(caller: Caller) -> None:
    listed = caller.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["auto", "fairpath/auto", *MODELS]
    for model in listed["data"]:
        assert caller.client.get(f"/v1/models/{model['id']}").json() == model
    missing = caller.client.get("/v1/models/nobody")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_a_key_needs_the_scope_route(caller: Caller) -> None:
    _, token = caller.service.store.create_key("reader", ["read"])
    answer = caller.ask(headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
    _, token = caller.service.store.create_key("app", ["route"])
    assert caller.ask(headers={"X-API-Key": token}).status_code == 200
