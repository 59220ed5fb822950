"""API keys, scopes, budgets of keys and rate limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from router.service.settings import ServiceSettings
from router.service.store import SCOPES, Store

Started = Callable[..., TestClient]
CALLS: list[tuple[str, str, dict[str, Any], set[str]]] = [
    ("POST", "/v1/route", {}, {"route"}),
    ("POST", "/v1/recommend", {}, {"route"}),
    ("POST", "/v1/lookalike", {"users": ["u01"]}, {"read"}),
    ("GET", "/v1/users/u01/profile", {}, {"read"}),
    ("POST", "/v1/feedback", {"user": "u01", "llm": "kind"}, {"feedback"}),
    ("GET", "/metrics", {}, {"read"}),
    ("GET", "/v1/releases", {}, {"read", "admin"}),
    ("POST", "/v1/admin/reload", {}, {"admin"}),
    ("GET", "/v1/models", {}, {"route"}),
]


def _store(client: TestClient) -> Store:
    store: Store = client.app.state.service.store  # type: ignore[attr-defined]
    return store


def _ask(client: TestClient, method: str, path: str, body: dict[str, Any], token: str | None = None) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
    return client.request(method, path, json=body if method == "POST" else None, headers=headers)


@pytest.fixture(scope="module")
def guarded(release_root: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that always wants a key."""
    from router.service.app import create_app

    store = f"sqlite:///{tmp_path_factory.mktemp('guarded') / 'feedback.db'}"
    settings = ServiceSettings(releases=release_root, store=store, auth="required")
    with TestClient(create_app(settings), client=("127.0.0.1", 50000)) as client:
        yield client


@pytest.mark.parametrize(("method", "path", "body", "scopes"), CALLS)
def test_each_scope_opens_its_endpoints_only(
    guarded: TestClient, method: str, path: str, body: dict[str, Any], scopes: set[str]
) -> None:
    for scope in SCOPES:
        _, token = _store(guarded).create_key("a test", [scope])
        status = _ask(guarded, method, path, body, token).status_code
        assert (status in (200, 201)) == (scope in scopes)
        assert status in (200, 201, 403)
    found = _ask(guarded, method, path, body)
    assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
    for wrong in ("x", "fp_x_y", "fp_" + "0" * 16 + "_" + "A" * 43, token[:-2] + "AA", "ü"):
        assert _ask(guarded, method, path, body, wrong).status_code == 401


def test_errors_of_openai_endpoints_have_openais_form(guarded: TestClient) -> None:
    error = guarded.get("/v1/models").json()["error"]
    assert error["type"] == "authentication_error"
    assert error["message"].startswith("an API key is needed")


def test_the_other_header_does_as_well(guarded: TestClient) -> None:
    _, token = _store(guarded).create_key("a test", ["route"])
    assert guarded.post("/v1/route", json={}, headers={"X-API-Key": token}).status_code == 200


def test_health_needs_no_key(guarded: TestClient) -> None:
    assert guarded.get("/healthz").json() == {"status": "ok"}
    assert guarded.get("/readyz").json()["ready"]


def test_a_revoked_or_expired_key_is_refused(guarded: TestClient) -> None:
    key, token = _store(guarded).create_key("a test", ["route"])
    assert _ask(guarded, "POST", "/v1/route", {}, token).status_code == 200
    _store(guarded).revoke_key(key.key_id)
    guarded.app.state.service.gate._found.clear()  # type: ignore[attr-defined]  # as a second does
    assert _ask(guarded, "POST", "/v1/route", {}, token).status_code == 401


def test_the_first_key_closes_a_local_service(client: TestClient) -> None:
    assert client.post("/v1/route", json={}).status_code == 200
    _, token = _store(client).create_key("a test", ["route"])
    client.app.state.service.gate._open_until = 0.0  # type: ignore[attr-defined]  # as a second does
    assert client.post("/v1/route", json={}).status_code == 401
    assert _ask(client, "POST", "/v1/route", {}, token).status_code == 200


def test_a_wrong_key_is_refused_where_none_is_needed(client: TestClient) -> None:
    assert _ask(client, "POST", "/v1/route", {}, "fp_wrong").status_code == 401


def test_a_key_of_another_service_is_ignored_where_none_is_needed(client: TestClient) -> None:
    assert _ask(client, "POST", "/v1/route", {}, "sk-anything").status_code == 200
    _store(client).create_key("first", {"route"})
    time.sleep(1.1)  # that no key was needed is remembered for a second
    assert _ask(client, "POST", "/v1/route", {}, "sk-anything").status_code == 401


def test_other_machines_always_need_a_key(started: Started) -> None:
    assert started(host="0.0.0.0").post("/v1/route", json={}).status_code == 401


def test_auth_cannot_be_off_for_other_machines(service_settings: ServiceSettings) -> None:
    with pytest.raises(ValidationError, match="'auth' must not be off where other machines reach"):
        ServiceSettings.model_validate(service_settings.model_dump() | {"auth": "off", "host": "0.0.0.0"})


def test_the_rate_limit_of_a_key(guarded: TestClient) -> None:
    _, token = _store(guarded).create_key("a test", ["route"], requests_per_minute=3)
    answers = [_ask(guarded, "POST", "/v1/route", {}, token) for _ in range(8)]
    # Should a minute of the clock begin meanwhile, there are three more.
    statuses = [found.status_code for found in answers]
    assert 3 <= statuses.count(200) <= 6
    refused = next(found for found in answers if found.status_code == 429)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["detail"].startswith("at most 3 requests per minute")


def test_the_rate_limit_of_an_address(started: Started) -> None:
    client = started(limits={"requests_per_minute": 2})
    statuses = [client.post("/v1/route", json={}).status_code for _ in range(6)]
    assert 2 <= statuses.count(200) <= 4
    assert set(statuses) == {200, 429}


def test_the_budget_of_a_key(guarded: TestClient) -> None:
    _, token = _store(guarded).create_key("a test", ["route", "feedback"], budget_usd=0.015)
    question = {"user": "u03", "task": "code"}
    found = _ask(guarded, "POST", "/v1/route", question, token).json()
    assert (found["chosen"], found["budget"]) == ("brief", {"user_left_usd": None, "key_left_usd": 0.015})
    assert found["left_out"]["kind"] == ["costs 0.02 USD (the key has 0.015 USD left)"]
    told = {"decision_id": found["decision_id"], "cost_usd": 0.01}
    assert _ask(guarded, "POST", "/v1/feedback", told, token).status_code == 201
    assert _ask(guarded, "POST", "/v1/route", question, token).status_code == 402


# Pages in a browser on the same machine


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8080"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Origin": "http://127.0.0.1:8080", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8080"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_pages_of_others_may_not_ask_while_no_key_is_needed(
    client: TestClient, headers: dict[str, str], status: int
) -> None:
    assert client.get("/v1/users", headers=headers).status_code == status
    assert client.post("/v1/route", json={}, headers=headers).status_code == status
    told = {"user": "u01", "llm": "kind"}
    expected = 201 if status == 200 else status
    assert client.post("/v1/feedback", json=told, headers=headers).status_code == expected
    _, token = _store(client).create_key("a test", ["route"])
    key = {"X-API-Key": token}
    assert client.post("/v1/route", json={}, headers=headers | key).status_code == 200


@pytest.mark.parametrize(
    "said", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", None]
)
def test_what_does_not_say_that_it_is_json_is_refused(client: TestClient, said: str | None) -> None:
    headers = {} if said is None else {"Content-Type": said}
    for path in ("/v1/route", "/v1/recommend", "/v1/feedback", "/v1/lookalike", "/v1/chat/completions"):
        found = client.post(path, content=b'{"user": "u01", "llm": "kind"}', headers=headers)
        assert found.status_code == 415, path
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/route", content=b"{}", headers=headers).status_code == 200


def test_nothing_of_another_site_runs_here(client: TestClient) -> None:
    assert client.get("/docs").status_code == 404
    assert client.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route"])
def test_a_body_that_does_not_come_is_not_waited_for(started: Started, path: str) -> None:
    client = started(limits={"timeout_s": 1.0})  # longer than it takes to come to the body
    sent: list[Any] = []

    async def ask() -> None:
        parts = iter([{"type": "http.request", "body": b"{", "more_body": True}])

        async def receive() -> Any:
            for part in parts:
                return part
            await anyio.sleep(10)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "headers": headers,
        }
        scope |= {"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}
        await client.app(scope, receive, send)

    assert client.portal is not None
    client.portal.call(ask)
    assert sent[0]["status"] == 408
    assert b"the body was not there within 1 s" in sent[1]["body"]
