"""``POST /v1/route``: decisions, what they are told to rest on, and what is refused."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from router.encoders import HashingEncoder
from router.service.desk import Desk
from tests.choice_files import LLMS

Started = Callable[..., TestClient]


def _route(client: TestClient, **body: Any) -> Any:
    found = client.post("/v1/route", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def test_two_users_with_opposite_tastes_get_different_llms(client: TestClient) -> None:
    chosen = {
        user: _route(client, user=user, query="code about topic 3")["chosen"] for user in ("u02", "u03")
    }
    assert chosen == {"u02": "brief", "u03": "kind"}


def test_an_answer_agrees_with_the_scorer(client: TestClient) -> None:
    found = _route(client, user="u03", query="poems about the sea", items=3)
    serving = client.app.state.service.live.serving  # type: ignore[attr-defined]
    embedding = HashingEncoder(256).encode(["poems about the sea"])[0]
    expected = serving.scorer.scores(serving.scorer.user("u03"), embedding)
    logits = dict(zip(LLMS, expected.preference.tolist(), strict=True))
    odds = {llm: math.exp(logit) for llm, logit in logits.items()}
    assert [model["llm"] for model in found["models"]] == sorted(LLMS, key=lambda llm: -logits[llm])
    for model in found["models"]:
        assert model["score"] == pytest.approx(logits[model["llm"]], rel=1e-5)
        assert model["preference"] == pytest.approx(odds[model["llm"]] / sum(odds.values()), rel=1e-5)
    assert found["chosen"] == found["models"][0]["llm"]
    assert found["fallbacks"] == [model["llm"] for model in found["models"][1:]]
    assert (found["task"], found["task_source"]) == (expected.task, "nearest")
    assert found["why"].startswith(f"{found['chosen']} is the likeliest choice of 3 candidates")
    assert [item["item"] for item in found["items"]] == [key for key, _ in serving.recommend("u03", None, 3)]
    assert found["release"] == serving.version


def test_an_embedding_says_the_same_as_its_text(client: TestClient) -> None:
    text = "code about something new"
    embedding = HashingEncoder(256).encode([text])[0].tolist()
    by_text, by_vector = (
        _route(client, user="u02", query=text),
        _route(client, user="u02", embedding=embedding),
    )
    assert by_text["models"] == by_vector["models"]
    assert by_vector["task_source"] == "nearest"


@pytest.mark.parametrize(
    ("body", "source"),
    [
        ({"user": "u02"}, "trained"),
        ({"user": "stranger"}, "population"),
        ({}, "population"),
        ({"user": "stranger", "interactions": {"item-7": 2.0, "item-8": 1.0}}, "interactions"),
        ({"interactions": {"item-7": 1.0, "no such item": 1.0}}, "interactions"),
        ({"user": "u99"}, "trained"),
        ({"attributes": {"age": 52.0}}, "attributes"),
    ],
)
def test_what_a_belief_rests_on_is_told(client: TestClient, body: dict[str, Any], source: str) -> None:
    based_on = _route(client, task="code", **body)["based_on"]
    assert based_on["source"] == source
    assert based_on["in_release"] == (source == "trained")
    assert based_on["unknown_items"] == sum(name.startswith("no") for name in body.get("interactions", ()))


def test_interactions_lead_to_the_llm_of_users_alike(client: TestClient) -> None:
    """The two kinds of users go for different items: 0 to 5, and 6 to 11."""
    likes = {
        kind: {
            model["llm"]: model["score"]
            for model in _route(client, task="code", interactions=items)["models"]
        }
        for kind, items in {
            "brief": {"item-0": 1.0, "item-1": 1.0, "item-2": 1.0},
            "kind": {"item-6": 1.0, "item-7": 1.0, "item-8": 1.0},
        }.items()
    }
    assert likes["kind"]["kind"] - likes["kind"]["brief"] > likes["brief"]["kind"] - likes["brief"]["brief"]


def test_candidates_and_constraints(client: TestClient) -> None:
    assert _route(client, user="u02", exclude=["brief"])["chosen"] == "kind"
    only = _route(client, user="u02", candidates=["kind", "kind"])
    assert [model["llm"] for model in only["models"]] == ["kind"]
    assert only["left_out"]["brief"] == ["is not among the allowed LLMs"]
    cheap = _route(client, user="u03", constraints={"max_cost_usd": 0.015})
    assert (cheap["chosen"], list(cheap["left_out"])) == ("brief", ["kind", "unused-price"])
    by_tokens = _route(client, user="u03", constraints={"prompt_tokens": 10_000, "answer_tokens": 10_000})
    costs = {model["llm"]: model["cost_usd"] for model in by_tokens["models"]}
    usual = client.app.state.service.settings.policy.answer_tokens  # type: ignore[attr-defined]
    assert costs["brief"] == pytest.approx(0.1e-2 + 0.3e-6 * usual)
    assert costs["kind"] == pytest.approx(0.2e-2 + 0.6e-6 * usual)
    short = _route(client, user="u03", constraints={"prompt_tokens": 10_000, "answer_tokens": 10})
    assert short["models"][0]["cost_usd"] == pytest.approx(0.2e-2 + 0.6e-6 * 10)


def test_no_candidate_says_who_was_left_out_why(client: TestClient) -> None:
    body = {"exclude": ["kind"], "constraints": {"max_cost_usd": 0.001, "max_latency_ms": 10.0}}
    found = client.post("/v1/route", json=body)
    assert found.status_code == 422
    assert found.headers["content-type"] == "application/problem+json"
    problem = found.json()
    assert problem["left_out"]["kind"][0] == "is excluded by the request"
    assert problem["left_out"]["brief"] == [
        "costs 0.01 USD (the request's budget is 0.001 USD)",
        "has no known latency",
    ]
    assert problem["detail"].startswith("no LLM fulfils the request's constraints: brief costs 0.01 USD")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"candidates": ["gpt-0"]}, "unknown LLM 'gpt-0'; the catalogue has brief, kind, unused-price"),
        ({"exclude": ["gpt-0"]}, "unknown LLM 'gpt-0'"),
        ({"embedding": [1.0, 2.0]}, "'embedding' must have 256 numbers, as encoder"),
        ({"embedding": [1e300] * 256}, "'embedding' must hold numbers of at most 1e+09 (got 1e+300)"),
        ({"embedding": []}, "'embedding' list should have at least 1 item"),
        ({"interactions": {"item-1": 0.0}}, "'interactions.item-1' must be greater than 0 (got 0.0)"),
        ({"attributes": {"shoe size": 43}}, "shoe size"),
        ({"attributes": {"age": "old"}}, "age"),
        ({"user": ""}, "'user' string should have at least 1 character"),
        ({"user": "a\u0000b"}, "'user' string should match pattern"),
        ({"user": 3}, "'user' must be a valid string (got 3)"),
        ({"colour": 1}, "'colour' extra inputs are not permitted (got 1)"),
        ({"items": -1}, "'items' must be greater than or equal to 0 (got -1)"),
        (
            {"constraints": {"max_cost_usd": -1}},
            "'constraints.max_cost_usd' must be greater than or equal to 0",
        ),
        ({"constraints": {"prompt_tokens": 1.5}}, "'constraints.prompt_tokens' must be a valid integer"),
    ],
)
def test_bad_bodies_are_refused_with_place_rule_and_value(
    client: TestClient, body: dict[str, Any], told: str
) -> None:
    found = client.post("/v1/route", json=body)
    assert found.status_code == 422, found.text
    assert told in found.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"embedding": [NaN]}', b'{"embedding": [1e999]}', b"\xff", b'{"user": "\\ud800"}'],
)
def test_what_is_not_json_is_refused(client: TestClient, content: bytes) -> None:
    said = {"Content-Type": "application/json"}
    assert client.post("/v1/route", content=content, headers=said).status_code == 422


def test_large_numbers_in_an_embedding_are_no_defect(client: TestClient) -> None:
    for number in (1e9, -1e9, 1e-300):
        found = client.post("/v1/route", json={"user": "u02", "embedding": [number] * 256})
        assert found.status_code == 200, found.text
        assert all(np.isfinite(model["score"]) for model in found.json()["models"])


def test_long_texts_and_bodies(started: Started) -> None:
    client = started(limits={"max_text_chars": 10, "max_body_bytes": 1000})
    assert client.post("/v1/route", json={"query": "x" * 10}).status_code == 200
    found = client.post("/v1/route", json={"query": "x" * 11})
    assert (found.status_code, found.json()["detail"]) == (
        422,
        "'query' must have at most 10 characters (got 11)",
    )
    found = client.post("/v1/route", json={"query": "x" * 1000})
    assert (found.status_code, found.json()["detail"]) == (413, "the body must have at most 1000 bytes")

    def parts() -> Any:
        yield b'{"query": "'
        for _ in range(20):
            yield b"x" * 100

    said = {"Content-Type": "application/json"}
    assert client.post("/v1/route", content=parts(), headers=said).status_code == 413


def test_a_request_that_takes_too_long(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    import anyio

    async def slow(*_: Any, **__: Any) -> Any:
        await anyio.sleep(10)

    monkeypatch.setattr(Desk, "route", slow)
    client = started(limits={"timeout_s": 0.05})
    found = client.post("/v1/route", json={})
    assert (found.status_code, found.json()["detail"]) == (504, "not answered within 0.05 s")


def test_a_defect_is_answered_without_its_text(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret")

    monkeypatch.setattr(Desk, "route", broken)
    found = client.post("/v1/route", json={})
    assert found.status_code == 500
    assert "secret" not in found.text


def test_a_session_keeps_its_llm_unless_another_is_clearly_better(started: Started) -> None:
    client = started(sessions={"margin": 1.0})
    first = _route(client, user="u03", task="code", exclude=["kind"], session_id="s")
    assert (first["chosen"], first["session"]) == ("brief", {"session_id": "s", "kept": False})
    scores = {model["llm"]: model["score"] for model in _route(client, user="u03", task="code")["models"]}
    again = _route(client, user="u03", task="code", session_id="s")
    kept = scores["kind"] - scores["brief"] <= 1.0
    assert (again["chosen"] == "brief", again["session"]["kept"]) == (kept, kept)
    loyal = started(sessions={"margin": 1e6})
    _route(loyal, user="u03", task="code", exclude=["kind"], session_id="t")
    again = _route(loyal, user="u03", task="code", session_id="t")
    assert (again["chosen"], again["session"]["kept"]) == ("brief", True)
    assert again["why"].startswith("brief stays (")
    assert [model["propensity"] for model in again["models"] if model["llm"] == "brief"] == [1.0]
    # Another user's session of the same name is another one.
    assert not _route(loyal, user="u01", task="code", session_id="t")["session"]["kept"]


def test_a_spent_budget_leads_to_cheaper_llms_and_then_to_none(started: Started) -> None:
    client = started(budgets={"user_usd": 0.05})
    first = _route(client, user="u03", task="code")
    assert (first["chosen"], first["budget"]) == ("kind", {"user_left_usd": 0.05, "key_left_usd": None})
    told = client.post("/v1/feedback", json={"decision_id": first["decision_id"], "cost_usd": 0.035})
    assert told.status_code == 201
    second = _route(client, user="u03", task="code")
    assert (second["chosen"], second["budget"]["user_left_usd"]) == ("brief", pytest.approx(0.015))
    assert second["left_out"]["kind"] == ["costs 0.02 USD (the user has 0.015 USD left)"]
    client.post("/v1/feedback", json={"decision_id": second["decision_id"], "cost_usd": 0.05})
    found = client.post("/v1/route", json={"user": "u03", "task": "code"})
    assert found.status_code == 402
    assert found.json()["title"] == "No LLM is within the budget of the user or the key"
    assert found.json()["left_out"]["brief"] == ["costs 0.01 USD (the user has 0 USD left)"]
    dear = {"user": "u03", "task": "code", "constraints": {"max_cost_usd": 0.0001}}
    assert client.post("/v1/route", json=dear).status_code == 422  # as it were with any budget
    assert _route(client, user="u01", task="code")["chosen"] == "kind"


def test_exploration_is_recorded_with_its_propensity(started: Started) -> None:
    client = started(policy={"exploration": "epsilon-greedy", "epsilon": 0.9})
    chosen = {_route(client, user="u02", task="code")["chosen"] for _ in range(40)}
    assert len(chosen) > 1
    found = _route(client, user="u02", task="code")
    assert sum(model["propensity"] for model in found["models"]) == pytest.approx(1)
    store = client.app.state.service.store  # type: ignore[attr-defined]
    record = store.decision(found["decision_id"])
    shown = {model["llm"]: model["propensity"] for model in found["models"]}
    assert record.propensity == pytest.approx(shown[found["chosen"]])


def test_decisions_are_recorded(client: TestClient) -> None:
    found = _route(client, user="u02", query="code about topic 3", task="code")
    record = client.app.state.service.store.decision(found["decision_id"])  # type: ignore[attr-defined]
    assert (record.user, record.llm, record.task, record.endpoint) == ("u02", "brief", "code", "route")
    assert set(record.offered) == set(LLMS)
    assert record.query_text is None
    np.testing.assert_array_equal(
        record.query_embedding, HashingEncoder(256).encode(["code about topic 3"])[0]
    )


def test_texts_are_kept_where_that_is_asked_for(started: Started) -> None:
    client = started(keep_texts=True)
    found = _route(client, query="code about\u0000 topic 3")
    record = client.app.state.service.store.decision(found["decision_id"])  # type: ignore[attr-defined]
    assert record.query_text == "code about topic 3"


def test_without_an_encoder_a_text_is_looked_up_only(started: Started) -> None:
    client = started(encoder={"kind": "none"})
    assert _route(client, user="u02", query="something never asked")["task_source"] == "population"
    assert client.get("/readyz").status_code == 200


def test_an_embedding_in_base64_is_the_same(client: TestClient) -> None:
    vector = np.random.default_rng(0).normal(size=256).astype(np.float32)
    plain = client.post("/v1/route", json={"user": "u03", "embedding": vector.tolist()}).json()
    written = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    packed = client.post("/v1/route", json={"user": "u03", "embedding_base64": written}).json()
    assert {**packed, "decision_id": ""} == {**plain, "decision_id": ""}
    nan = base64.b64encode(np.full(256, np.nan, "<f4").tobytes()).decode()
    for wrong in ({"embedding_base64": "?"}, {"embedding_base64": "AAAA"}, {"embedding_base64": nan}):
        assert client.post("/v1/route", json=wrong).status_code == 422
    both = {"embedding": vector.tolist(), "embedding_base64": written}
    assert "must not be given together" in client.post("/v1/route", json=both).json()["detail"]
