"""``POST /v1/feedback``: accepted once, taken in at once, and by other workers soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

Started = Callable[..., TestClient]


def _decide(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/route", json={"task": "code", **body}).json()


def _tell(client: TestClient, key: str | None = None, **body: Any) -> Any:
    return client.post("/v1/feedback", json=body, headers={} if key is None else {"Idempotency-Key": key})


def test_a_new_user_is_personalised_by_a_few_thumbs(client: TestClient) -> None:
    before = _decide(client, user="new")
    assert before["based_on"]["source"] == "population"
    for _ in range(4):
        decision = _decide(client, user="new", candidates=["kind"])
        assert _tell(client, decision_id=decision["decision_id"], thumbs=1).status_code == 201
    # Chosen where nothing else was on offer tells nothing; a preference among all does.
    for _ in range(4):
        assert _tell(client, user="new", llm="kind").status_code == 201
    after = _decide(client, user="new")
    assert (after["based_on"]["source"], after["based_on"]["n_events"]) == ("feedback", 8)
    chance = {
        name: next(model["preference"] for model in found["models"] if model["llm"] == "kind")
        for name, found in (("before", before), ("after", after))
    }
    assert chance["after"] > chance["before"] + 0.1
    assert after["chosen"] == "kind"


def test_a_known_user_moves_with_feedback(client: TestClient) -> None:
    before = _decide(client, user="u02")
    for _ in range(6):
        _tell(client, user="u02", llm="kind")
    after = _decide(client, user="u02")
    assert (before["based_on"]["source"], after["based_on"]["source"]) == ("trained", "trained+feedback")
    score = {
        name: {model["llm"]: model["score"] for model in found["models"]}
        for name, found in (("before", before), ("after", after))
    }
    assert score["after"]["kind"] > score["before"]["kind"]


def test_a_replay_is_accepted_once(client: TestClient) -> None:
    first = _tell(client, "a", user="new", llm="kind")
    again = _tell(client, "a", user="new", llm="kind")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == {"feedback_id": first.json()["feedback_id"], "replayed": True}
    assert _decide(client, user="new")["based_on"]["n_events"] == 1
    conflict = _tell(client, "a", user="new", llm="brief")
    assert (conflict.status_code, conflict.json()["title"]) == (409, "This conflicts with what is there")
    assert _tell(client, "b", user="new", llm="kind").status_code == 201


def test_an_unknown_decision(client: TestClient) -> None:
    found = _tell(client, decision_id="0" * 32, thumbs=1)
    assert found.status_code == 404
    assert "no decision" in found.json()["detail"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"thumbs": 1}, "'decision_id' or 'user' must be given"),
        ({"user": "u02"}, "one of 'llm', 'thumbs', 'score'"),
        ({"user": "u02", "llm": "gpt-0"}, "unknown LLM 'gpt-0'"),
        ({"user": "u02", "thumbs": 1}, "'llm' is needed for a judgement"),
        ({"user": "u02", "llm": "kind", "thumbs": 0}, "'thumbs' must be -1 or 1 (got 0)"),
        ({"user": "u02", "llm": "kind", "score": 1.1}, "'score' must be less than or equal to 1 (got 1.1)"),
        ({"user": "u02", "llm": "kind", "cost_usd": -1}, "'cost_usd' must be greater than or equal to 0"),
        ({"user": "u02", "items": {"item-1": -1}}, "'items.item-1' must be greater than 0"),
    ],
)
def test_bad_feedback(client: TestClient, body: dict[str, Any], told: str) -> None:
    found = _tell(client, **body)
    assert found.status_code == 422
    assert told in found.json()["detail"]


def test_another_users_decision_is_not_judged(client: TestClient) -> None:
    decision = _decide(client, user="u02")
    assert _tell(client, decision_id=decision["decision_id"], user="u03", thumbs=1).status_code == 422


@pytest.mark.parametrize("key", ["", "x" * 256, "a b"])
def test_a_bad_idempotency_key(client: TestClient, key: str) -> None:
    assert _tell(client, key, user="u02", llm="kind").status_code == 422


def test_another_worker_takes_it_in_soon(started: Started) -> None:
    one, other = started(), started()
    assert _decide(other, user="u02")["based_on"]["n_events"] == 0
    assert _tell(one, user="u02", llm="kind").status_code == 201
    assert _decide(one, user="u02")["based_on"]["n_events"] == 1
    give_up_s = time.monotonic() + 5
    while _decide(other, user="u02")["based_on"]["n_events"] != 1:
        assert time.monotonic() < give_up_s
        time.sleep(0.05)


def test_a_worker_that_starts_later_knows_it(started: Started) -> None:
    one = started()
    assert _tell(one, user="u02", llm="kind").status_code == 201
    assert _decide(started(), user="u02")["based_on"]["n_events"] == 1
