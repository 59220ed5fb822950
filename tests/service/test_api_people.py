"""Recommendations, lookalikes and profiles, against the parts that they come from."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient


def _ask(client: TestClient, path: str, **body: Any) -> Any:
    found = client.post(path, json=body)
    assert found.status_code == 200, found.text
    return found.json()


def test_recommendations(client: TestClient) -> None:
    serving = client.app.state.service.live.serving  # type: ignore[attr-defined]
    found = _ask(client, "/v1/recommend", user="u03", k=4)
    assert [item["item"] for item in found["items"]] == [key for key, _ in serving.recommend("u03", None, 4)]
    assert (found["release"], found["known_user"]) == (serving.version, True)
    assert not _ask(client, "/v1/recommend", user="stranger")["known_user"]
    alike = _ask(client, "/v1/recommend", interactions={"item-6": 1.0, "item-7": 1.0}, k=3)
    assert {item["item"] for item in alike["items"]} <= {f"item-{i}" for i in range(8, 12)}
    first = alike["items"][0]["item"]
    without = _ask(client, "/v1/recommend", interactions={"item-6": 1.0, "item-7": 1.0}, k=3, exclude=[first])
    assert first not in {item["item"] for item in without["items"]}
    only = _ask(client, "/v1/recommend", user="u03", allowed=["item-1", "no such item"], exclude_seen=False)
    assert [item["item"] for item in only["items"]] == ["item-1"]


def test_lookalikes_are_of_the_same_kind(client: TestClient) -> None:
    found = _ask(client, "/v1/lookalike", users=["u01", "u03", "u05"], k=8)["users"]
    assert len(found) == 8
    assert sum(int(user["user"][1:]) % 2 for user in found) >= 7
    assert not {"u01", "u03", "u05"} & {user["user"] for user in found}
    scores = [user["score"] for user in found]
    assert scores == sorted(scores, reverse=True)


def test_a_users_items_are_not_told_apart_without_the_scope_read(client: TestClient) -> None:
    store = client.app.state.service.store  # type: ignore[attr-defined]
    tokens = {scopes: store.create_key("a test", scopes)[1] for scopes in (("route",), ("route", "read"))}

    def status(scopes: tuple[str, ...], path: str, **body: Any) -> int:
        headers = {"Authorization": f"Bearer {tokens[scopes]}"}
        return client.post(path, json=body, headers=headers).status_code

    telling: list[dict[str, Any]] = [
        {"exclude_seen": False},
        {"allowed": ["item-1", "item-2"]},
        {"k": 101},
        {"k": 60, "exclude": [f"x{i}" for i in range(41)]},
    ]
    for body in telling:
        assert status(("route",), "/v1/recommend", user="u03", **body) == 403
        assert status(("route",), "/v1/recommend", **body) == 200  # nobody's
        assert status(("route", "read"), "/v1/recommend", user="u03", **body) == 200
    assert status(("route",), "/v1/recommend", user="u03", k=60, exclude=["item-1"]) == 200
    assert status(("route",), "/v1/route", user="u03", items=101) == 403
    assert status(("route",), "/v1/route", user="u03", items=100) == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v1/lookalike", {"users": ["u01", "nobody"]}, 422, "unknown users: 'nobody'"),
        ("/v1/lookalike", {"users": []}, 422, "'users' list should have at least 1 item"),
        ("/v1/lookalike", {"users": ["u01"], "k": 0}, 422, "'k' must be greater than or equal to 1 (got 0)"),
        ("/v1/recommend", {"k": 1001}, 422, "'k' must be less than or equal to 1000 (got 1001)"),
        ("/v1/recommend", {"interactions": {"item-1": -1.0}}, 422, "'interactions.item-1' must be greater"),
    ],
)
def test_what_is_refused(client: TestClient, path: str, body: Any, status: int, told: str) -> None:
    found = client.post(path, json=body)
    assert found.status_code == status
    assert told in found.json()["detail"]


def test_a_profile_says_what_is_believed(client: TestClient) -> None:
    found = client.get("/v1/users/u03/profile")
    assert found.status_code == 200, found.text
    profile = found.json()
    assert profile["user"] == "u03"
    assert profile["overall"]["llms"][0]["llm"] == "kind"
    assert profile["evidence"]["source"] == "trained"
    assert profile["neighborhood"]["nodes"]


def test_a_profile_out_of_feedback_alone(client: TestClient) -> None:
    client.post("/v1/feedback", json={"user": "new/user", "llm": "kind"})
    profile = client.get("/v1/users/new%2Fuser/profile").json()
    assert (profile["user"], profile["evidence"]["source"]) == ("new/user", "feedback")


@pytest.mark.parametrize("user", ["nobody", "%00", "a" * 600])
def test_nobodys_profile(client: TestClient, user: str) -> None:
    found = client.get(f"/v1/users/{user}/profile")
    assert found.status_code == (404 if user == "nobody" else 422)
    assert "nobody" in found.text or "user" in found.json()["detail"]
