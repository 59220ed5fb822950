"""The page's files, and the users that it offers, without a browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient


class _Tags(HTMLParser):
    """Tags of a page, with their attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture
def tags(client: TestClient) -> list[tuple[str, dict[str, str | None]]]:
    return _Tags(client.get("/").text).tags


def test_page_is_served_with_a_policy_that_forbids_what_is_inline_or_from_elsewhere(
    client: TestClient,
) -> None:
    found = client.get("/")
    assert found.status_code == 200
    assert found.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in found.headers["content-security-policy"]
    assert "unsafe" not in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff"


def test_page_has_nothing_inline(client: TestClient, tags: list[tuple[str, dict[str, str | None]]]) -> None:
    for tag, attributes in tags:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_all_that_the_page_and_its_modules_load_is_there(
    client: TestClient, tags: list[tuple[str, dict[str, str | None]]]
) -> None:
    wanted = {a.get("src") or a.get("href") for tag, a in tags if tag in ("script", "link")}
    loaded: set[str] = set()
    while wanted:
        name = wanted.pop()
        assert name is not None
        found = client.get(f"/{name}")
        assert found.status_code == 200, name
        assert "default-src 'self'" in found.headers["content-security-policy"]
        loaded.add(name)
        wanted |= {f"page/{module}" for module in re.findall(r'from "\./(.+?)"', found.text)} - loaded
    assert {"page/page.js", "page/style.css", "page/dom.js"} <= loaded
    assert client.get("/page/page.js").headers["content-type"].startswith("text/javascript")


def test_scripts_parse_no_html(client: TestClient) -> None:
    for name in ("page", "dom", "charts", "decision", "neighborhood", "profile", "service"):
        text = client.get(f"/page/{name}.js").text
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|localStorage", text
        )


def test_labels_belong_to_fields(tags: list[tuple[str, dict[str, str | None]]]) -> None:
    fields = {a["id"] for tag, a in tags if tag in ("input", "select", "textarea")}
    assert {a["for"] for tag, a in tags if tag == "label"} == fields


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/../app.py", "/page/%2e%2e/app.py", "/page"])
def test_other_files_are_not_served(client: TestClient, path: str) -> None:
    found = client.get(path)
    assert found.status_code == 404
    assert found.json()["status"] == 404


def test_page_does_not_hide_the_methods_of_the_endpoints(client: TestClient) -> None:
    assert client.get("/v1/route").status_code == 405


def test_users_are_spread_evenly_over_the_release(client: TestClient) -> None:
    found = client.get("/v1/users", params={"limit": 4}).json()
    everyone = client.get("/v1/users", params={"limit": 1000}).json()["users"]
    assert found["release"] == client.app.state.service.live.serving.version  # type: ignore[attr-defined]
    assert found["n_users"] == len(everyone) == len(set(everyone))
    assert {"u00", "u01", "u39"} <= set(everyone)
    assert found["users"] == [everyone[i * len(everyone) // 4] for i in range(4)]


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many"])
def test_limit_of_users_has_its_rule(client: TestClient, limit: str) -> None:
    found = client.get("/v1/users", params={"limit": limit})
    assert found.status_code == 422
    assert "limit" in found.json()["detail"]


def test_users_need_the_scope_read_and_the_page_needs_no_key(started: Callable[..., TestClient]) -> None:
    client = started(auth="required")
    store = client.app.state.service.store  # type: ignore[attr-defined]
    keys = {scope: store.create_key(scope, {scope})[1] for scope in ("read", "route")}
    assert client.get("/").status_code == 200
    assert client.get("/page/page.js").status_code == 200
    assert client.get("/v1/users").status_code == 401
    answers = {scope: client.get("/v1/users", headers={"X-API-Key": key}) for scope, key in keys.items()}
    assert {scope: found.status_code for scope, found in answers.items()} == {"read": 200, "route": 403}


def test_users_are_documented_and_the_page_is_not(app: FastAPI) -> None:
    paths: dict[str, Any] = app.openapi()["paths"]
    assert set(paths["/v1/users"]["get"]["responses"]) >= {"200", "401", "403", "422"}
    assert paths["/v1/users"]["get"]["security"]
    assert "/" not in paths
    assert not [path for path in paths if path.startswith("/page")]
