"""Endpoints without a framework in between answer as with one; their bodies are read as their model says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient

from router.errors import ParameterError
from router.service.desk import Desk
from router.service.routes.bodies import json_of
from router.service.routes.routing import _read
from router.service.schemas import MAX_NUMBERS, RouteRequest

PATHS = ("/v1/route", "/v1/recommend", "/v1/lookalike")


@pytest.mark.parametrize("path", PATHS)
def test_plain_routes_are_found_without_the_framework(client: TestClient, path: str) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    metrics = app.state.service.metrics
    app.router.routes.clear()
    assert client.post(path).status_code == 415
    assert client.post(path, json={"unheard of": 1}).status_code == 422
    for status in (415, 422):
        line = f'fairpath_request_seconds_count{{method="POST",route="{path}",status="{status}"}} 1.0'
        assert line in metrics.render().decode()


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_and_paths_are_the_frameworks(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 405
    assert client.post(f"{path}x", json={}).status_code == 404


def test_a_defect_is_told_without_its_text(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("of a user's secret")

    monkeypatch.setattr(Desk, "route", broken)
    with TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 1), raise_server_exceptions=False) as asked:
        found = asked.post("/v1/route", json={})
    assert (found.status_code, found.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in found.text


@pytest.mark.parametrize("parts", [[b"{}"], [b"{", b"", b"}"], [b""]])
def test_a_body_in_parts_is_one_body(parts: list[bytes]) -> None:
    messages = [
        {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
        for i, part in enumerate(parts)
    ]
    assert asyncio.run(json_of(_request(messages))) == b"".join(parts)


def test_a_caller_who_leaves_is_noticed() -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    with pytest.raises(ClientDisconnect):
        asyncio.run(json_of(_request(messages)))


def _request(messages: list[dict[str, Any]]) -> Request:
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(left)

    headers = [(b"content-type", b"application/json")]
    return Request({"type": "http", "headers": headers}, receive)


@pytest.mark.parametrize(
    "body",
    [
        {"embedding": [0.25, -1, 3e-7], "user": "ana", "items": 2},
        {"embedding": [1] * MAX_NUMBERS},
        {"embedding": [True, "0.5", 2]},
        {"embedding": [1e9, -1e9], "constraints": {"capabilities": ["tools"], "max_cost_usd": 1}},
        {"embedding": None, "candidates": ["kind"]},
        {"query": "a", "interactions": {"item": 1}, "attributes": {"age": 3, "kind": True, "city": "Bonn"}},
    ],
)
def test_a_vector_is_read_as_the_model_reads_it(body: dict[str, Any]) -> None:
    written = json.dumps(body).encode()
    wanted = RouteRequest.model_validate_json(written)
    found, vector = _read(written)
    assert found.model_copy(update={"embedding": wanted.embedding}) == wanted
    if wanted.embedding is None:
        assert vector is None
    else:
        np.testing.assert_array_equal(vector, np.array(wanted.embedding, dtype=np.float32))


@pytest.mark.parametrize(
    "body",
    [
        b'{"embedding": "abc"}',
        b'{"embedding": {}}',
        b'{"embedding": {"a": 1}}',
        b'{"embedding": []}',
        b'{"embedding": [null]}',
        b'{"embedding": [[1]]}',
        b'{"embedding": [1, "x"]}',
        b'{"embedding": [Infinity]}',
        b'{"embedding": [1e999]}',
        b'{"embedding": [1], "unheard_of": 1}',
        b'{"embedding": [1], "user": ""}',
        b'["embedding"]',
        json.dumps({"embedding": [1] * (MAX_NUMBERS + 1)}).encode(),
    ],
)
def test_what_the_model_refuses_is_refused_in_its_words(body: bytes) -> None:
    with pytest.raises(ValidationError) as wanted:
        RouteRequest.model_validate_json(body)
    with pytest.raises(ValidationError) as found:
        _read(body)
    assert [(one["loc"], one["msg"]) for one in found.value.errors()] == [
        (one["loc"], one["msg"]) for one in wanted.value.errors()
    ]


@pytest.mark.parametrize(
    "body", [b'{"embedding": [1000000001]}', b'{"embedding": [1], "embedding_base64": "AACAPw=="}']
)
def test_rules_of_vectors_hold(body: bytes) -> None:
    with pytest.raises(ParameterError, match="'embedding'"):
        _read(body)


def test_a_key_in_use_is_looked_up_beside_its_requests(started: Callable[..., TestClient]) -> None:
    client = started(auth="required")
    service = client.app.state.service  # type: ignore[attr-defined]
    key, token = service.store.create_key("a test", ["route"])
    headers = {"Authorization": f"Bearer {token}"}
    gate = service.gate

    def aged(seconds: float) -> None:
        for digest, (found, _) in gate._found.items():
            gate._found[digest] = found, time.monotonic() - seconds

    assert client.post("/v1/route", json={}, headers=headers).status_code == 200
    service.store.revoke_key(key.key_id)
    aged(0.6)  # still remembered, and looked up meanwhile
    assert client.post("/v1/route", json={}, headers=headers).status_code == 200
    end = time.monotonic() + 10
    while client.post("/v1/route", json={}, headers=headers).status_code != 401:
        assert time.monotonic() < end
        aged(0.6)
    aged(1.1)
    assert client.post("/v1/route", json={}, headers=headers).status_code == 401
