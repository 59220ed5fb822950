"""``POST /v1/feedback``: accepted once, taken in at once, and by other workers soon."""

from __future__ import annotations

import threading
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


def test_items_that_a_user_turned_to_are_not_recommended_again(client: TestClient) -> None:
    first = client.post("/v1/recommend", json={"user": "u03", "k": 1}).json()["items"][0]["item"]
    assert _tell(client, user="u03", items={first: 1}).status_code == 201
    recommended = client.post("/v1/recommend", json={"user": "u03", "k": 1000}).json()["items"]
    assert recommended
    assert first not in [entry["item"] for entry in recommended]
    routed = _decide(client, user="u03", items=1000)
    assert first not in [entry["item"] for entry in routed["items"]]


def test_items_place_a_user_whom_the_release_does_not_know(client: TestClient) -> None:
    items = {"item-6": 1.0, "item-7": 2.0}
    sent = _decide(client, user="stranger", interactions=items)
    assert _decide(client, user="new")["based_on"]["source"] == "population"
    for item, weight in items.items():
        _tell(client, user="new", items={item: weight})
    told = _decide(client, user="new")
    assert told["based_on"]["source"] == "interactions"
    assert [model["score"] for model in told["models"]] == [model["score"] for model in sent["models"]]


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
        (
            {"user": "u02", "llm": "kind", "thumbs": 1, "score": 0},
            "'thumbs' and 'score' must agree (got 1 and",
        ),
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


def test_feedback_is_for_decisions_of_its_own_key(client: TestClient) -> None:
    store = client.app.state.service.store  # type: ignore[attr-defined]
    tokens = {name: store.create_key(name, ["route", "feedback"])[1] for name in ("a", "b")}
    tokens["admin"] = store.create_key("admin", ["feedback", "admin"])[1]
    headers = {name: {"X-API-Key": token} for name, token in tokens.items()}
    decided = client.post("/v1/route", json={"user": "u02", "task": "code"}, headers=headers["a"]).json()
    told = {"decision_id": decided["decision_id"], "thumbs": 1}
    for name, status in (("b", 404), ("a", 201), ("admin", 201)):
        assert client.post("/v1/feedback", json=told, headers=headers[name]).status_code == status


def test_a_decision_that_another_worker_has_yet_to_write_is_waited_for(started: Started) -> None:
    one, other = started(), started()
    decision_id = _decide(one, user="u02")["decision_id"]
    assert _tell(other, decision_id=decision_id, thumbs=1).status_code == 201
    begun = time.monotonic()
    assert _tell(other, decision_id=f"{'f' * 12}{'0' * 20}", thumbs=1).status_code == 404
    assert time.monotonic() - begun < 0.3  # it is of the future


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


def test_a_defect_does_not_end_what_follows_other_workers(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = started(), started()
    follower = there.app.state.service  # type: ignore[attr-defined]
    failed = threading.Event()

    def fail(cursor: int) -> tuple[int, list[str]]:
        failed.set()
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(follower.store, "users_changed_since", fail)
        assert failed.wait(5)
    _tell(here, user="new", llm="kind")
    until = time.monotonic() + 5
    while _decide(there, user="new")["based_on"]["source"] != "feedback":
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_worker_that_starts_later_knows_it(started: Started) -> None:
    one = started()
    assert _tell(one, user="u02", llm="kind").status_code == 201
    assert _decide(started(), user="u02")["based_on"]["n_events"] == 1


def test_an_llm_that_neither_release_nor_decision_knows_is_refused(client: TestClient) -> None:
    decision_id = client.post("/v1/route", json={"user": "u02"}).json()["decision_id"]
    told = {"decision_id": decision_id, "thumbs": 1}
    found = client.post("/v1/feedback", json=told | {"llm": "no-such"})
    assert found.status_code == 422
    assert "unknown LLM 'no-such'" in found.json()["detail"]
    assert client.post("/v1/feedback", json=told | {"llm": "kind"}).status_code == 201
