"""A user who asks to be forgotten: refused everywhere, in nobody's answers, by every worker."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.testclient import TestClient

from router.publishing import publish
from router.service.problems import USER_ERASED
from router.service.store import open_store
from tests.service.served import serving
from tests.service.store.test_store_erasures import named

Started = Callable[..., TestClient]
ERASED = "u03"
WITHIN_S = 5.0  # a quarter of a second, on a machine that has nothing else to do


def _service(client: TestClient) -> Any:
    return client.app.state.service  # type: ignore[attr-defined]


def _asked_of(client: TestClient, user: str) -> dict[str, Any]:
    """Answers of all endpoints that name a user."""
    chat = {"model": "auto", "user": user, "messages": [{"role": "user", "content": "code"}]}
    return {
        "route": client.post("/v1/route", json={"user": user, "task": "code", "items": 2}),
        "recommend": client.post("/v1/recommend", json={"user": user}),
        "feedback": client.post("/v1/feedback", json={"user": user, "llm": "kind"}),
        "lookalike": client.post("/v1/lookalike", json={"users": ["u01", user]}),
        "profile": client.get(f"/v1/users/{user}/profile"),
        "chat": client.post("/v1/chat/completions", json=chat),
        "chat by name": client.post("/v1/chat/completions", json=chat | {"model": "kind"}),
    }


def _statuses(client: TestClient, user: str) -> set[int]:
    return {found.status_code for found in _asked_of(client, user).values()}


def _near(client: TestClient, user: str) -> list[str]:
    """Users whom the profile of another one names."""
    profile = client.get(f"/v1/users/{user}/profile").json()
    nodes = [node["label"] for node in profile["neighborhood"]["nodes"] if node["kind"] == "user"]
    return nodes + [near["key"] for near in profile["near_users"]]


@pytest.fixture
def told(started: Started) -> TestClient:
    """A service that chats, with feedback of some users."""
    client = started(stand_in=True)
    for user in (ERASED, "u05"):
        for found in _asked_of(client, user).values():
            assert found.status_code < 300, found.text
    return client


def test_an_erased_user_is_refused_at_once_by_all_endpoints(told: TestClient) -> None:
    decided = told.post("/v1/route", json={"user": ERASED, "task": "code"}).json()["decision_id"]
    for_nobody = told.post("/v1/route", json={"task": "code"}).json()["decision_id"]
    erased = told.delete(f"/v1/users/{ERASED}")
    assert erased.status_code == 200, erased.text
    assert [erased.json()[name] for name in ("known", "in_release", "swept")] == [True, True, True]
    assert erased.json()["deleted"]["feedback"] >= 1
    assert erased.json()["requested_at"] == pytest.approx(time.time(), abs=5)
    for name, found in _asked_of(told, ERASED).items():
        assert found.status_code == 410, name
        assert ERASED not in found.text
        if name.startswith("chat"):
            assert found.json()["error"]["code"] == "user_erased"
        else:
            assert found.headers["content-type"] == "application/problem+json"
            assert found.json()["type"] == USER_ERASED
    claim = {"user": ERASED, "decision_id": for_nobody, "thumbs": 1}
    assert told.post("/v1/feedback", json=claim).status_code == 410
    # Of a decision that was deleted nothing is left to tell whose it was.
    assert told.post("/v1/feedback", json={"decision_id": decided, "thumbs": 1}).status_code == 404
    assert {name: found.status_code for name, found in _asked_of(told, "u05").items()} == {
        "route": 200,
        "recommend": 200,
        "feedback": 201,
        "lookalike": 200,
        "profile": 200,
        "chat": 200,
        "chat by name": 200,
    }
    assert told.post("/v1/recommend", json={"interactions": {"item-6": 1.0}}).status_code == 200
    _service(told).store.flush()
    assert named(_service(told).settings.store_url, ERASED) == set()


def test_an_erased_user_is_in_nobody_elses_answers(told: TestClient) -> None:
    """The oracle: answers before, without the user, and with whoever comes next."""
    serving = _service(told).live.serving
    everybody = [key for key, _ in serving.lookalike(["u01"], 1000)]
    near_before, users_before = _near(told, "u01"), told.get("/v1/users?limit=1000").json()["users"]
    gone = {everybody[0], everybody[2], next(user for user in near_before if user != "u01")}
    assert gone <= set(users_before)
    for user in gone:
        told.delete(f"/v1/users/{user}")
    left = [user for user in everybody if user not in gone]
    for k in (1, 2, 5, 1000):
        found = told.post("/v1/lookalike", json={"users": ["u01"], "k": k}).json()["users"]
        assert [entry["user"] for entry in found] == left[:k]
    near = _near(told, "u01")
    assert near
    assert not gone & set(near)
    assert set(near_before) - gone <= set(near)
    assert told.get("/v1/users?limit=1000").json()["users"] == [u for u in users_before if u not in gone]


def test_other_workers_refuse_within_a_second(started: Started) -> None:
    here, there = started(stand_in=True), started(stand_in=True)
    _asked_of(there, ERASED)
    assert here.delete(f"/v1/users/{ERASED}").status_code == 200
    begun = time.monotonic()
    while _statuses(there, ERASED) != {410}:
        assert time.monotonic() < begun + WITHIN_S
        time.sleep(0.02)
    kept = _service(there).beliefs._kept
    assert ERASED not in kept
    store = _service(here).store
    store.readmit_user(ERASED)
    begun = time.monotonic()
    while 410 in _statuses(there, ERASED):
        assert time.monotonic() < begun + WITHIN_S
        time.sleep(0.02)


def test_a_worker_that_starts_later_refuses(started: Started) -> None:
    started().delete(f"/v1/users/{ERASED}")
    assert _statuses(started(stand_in=True), ERASED) == {410}


def test_a_readmitted_user_is_new_until_a_release_has_heard_of_it(
    started: Started, release_stores: dict[str, Path], tmp_path: Path
) -> None:
    root = tmp_path / "releases"
    publish(root, **release_stores)
    client = started(releases=root, poll_s=1000.0)
    store = _service(client).store
    stranger = client.post("/v1/route", json={"user": "stranger", "task": "code"}).json()
    erased_at = client.delete(f"/v1/users/{ERASED}").json()["requested_at"]
    assert store.readmit_user(ERASED)
    client.portal.call(_service(client).erasures.refresh)
    found = client.post("/v1/route", json={"user": ERASED, "task": "code"}).json()
    assert (found["models"], found["based_on"]) == (stranger["models"], stranger["based_on"])
    assert client.get(f"/v1/users/{ERASED}/profile").status_code == 404
    assert client.post("/v1/lookalike", json={"users": [ERASED]}).status_code == 422
    popular = client.post("/v1/recommend", json={"user": "stranger"}).json()["items"]
    assert client.post("/v1/recommend", json={"user": ERASED}).json() == {
        "release": _service(client).live.serving.version,
        "known_user": False,
        "items": popular,
    }
    near = client.post("/v1/lookalike", json={"users": ["u01"], "k": 1000}).json()["users"]
    assert ERASED not in [entry["user"] for entry in near]
    client.post("/v1/feedback", json={"user": ERASED, "llm": "kind"})
    assert client.get(f"/v1/users/{ERASED}/profile").json()["evidence"]["source"] == "feedback"

    until = datetime.fromtimestamp(erased_at, UTC)
    publish(root, **release_stores, erased_until=until)
    client.post("/v1/admin/reload")
    profile = client.get(f"/v1/users/{ERASED}/profile").json()
    assert profile["evidence"]["source"] == "trained+feedback"  # it was trained with what came later
    client.delete(f"/v1/users/{ERASED}")
    assert _statuses(client, ERASED) == {410}


def _wait_until_gone(client: TestClient) -> None:
    begun = time.monotonic()
    while named(_service(client).settings.store_url, ERASED):
        assert time.monotonic() < begun + WITHIN_S
        time.sleep(0.02)


def _decide_often(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.service.store.erasures._BATCH_ROWS", 2)
    for _ in range(20):
        client.post("/v1/route", json={"user": ERASED, "task": "code"})
    _service(client).store.flush()


def test_a_long_erasure_is_gone_on_with_after_the_answer(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _decide_often(client, monkeypatch)
    monkeypatch.setattr("router.service.routes.people._ERASING_S", 0.0)
    erased = client.delete(f"/v1/users/{ERASED}").json()
    assert (erased["swept"], erased["known"]) == (False, True)
    assert client.post("/v1/route", json={"user": ERASED, "task": "code"}).status_code == 410
    _wait_until_gone(client)


def test_a_service_goes_on_with_what_a_killed_command_left(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _decide_often(client, monkeypatch)
    monkeypatch.setattr("router.service.store.erasures._OTHERS_SWEEP_S", 0.05)
    with open_store(_service(client).settings.store_url) as other:
        other._sweeper.stop()
        assert not other.erase_user(ERASED, wait_s=0.0).swept
    _wait_until_gone(client)


def test_an_erasure_needs_the_scope_admin(client: TestClient) -> None:
    store = _service(client).store
    tokens = {scope: store.create_key(scope, [scope])[1] for scope in ("route", "read", "feedback", "admin")}
    for scope, token in tokens.items():
        found = client.delete("/v1/users/u05", headers={"X-API-Key": token})
        assert found.status_code == (200 if scope == "admin" else 403)
    assert client.delete("/v1/users/u05").status_code == 401


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("%00", 422),
        ("", 422),
        ("a" * 600, 422),
        ("new%2Fuser", 200),
        ("new/user", 404),
        ("u05/", 404),
        ("u05/profile", 404),
        ("%2F/u05", 404),
        ("%ff", 422),
    ],
)
def test_whom_to_erase(client: TestClient, path: str, status: int) -> None:
    found = client.delete(f"/v1/users/{path}")
    assert found.status_code == status, found.text
    if status == 200:
        assert found.json()["deleted"] == dict.fromkeys(found.json()["deleted"], 0)
        assert not found.json()["in_release"]
        assert not found.json()["known"]
        assert client.post("/v1/route", json={"user": "new/user"}).status_code == 410
        assert client.delete(f"/v1/users/{path}").json()["known"]  # as one who was erased
    else:
        assert _service(client).store.erasures() == ()


def test_erasing_under_load_leaves_nothing(started: Started) -> None:
    """Two workers answer for a user while one of them erases; nothing is written of it afterwards."""
    workers = [started(stand_in=True), started(stand_in=True)]
    stopped = threading.Event()
    statuses: list[set[int]] = []

    def ask(number: int) -> None:
        client, user = workers[number % 2], ERASED if number < 3 else "u05"
        seen: set[int] = set()
        while not stopped.is_set():
            decided = client.post(
                "/v1/route", json={"user": user, "task": "code", "session_id": f"s{number}"}
            )
            seen.add(decided.status_code)
            if decided.status_code == 200:
                told = {"decision_id": decided.json()["decision_id"], "thumbs": 1, "cost_usd": 0.01}
                seen.add(client.post("/v1/feedback", json=told).status_code)
            chat = {"model": "auto", "user": user, "messages": [{"role": "user", "content": "code"}]}
            seen.add(client.post("/v1/chat/completions", json=chat).status_code)
        statuses.append(seen)

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, number) for number in range(4)]
        try:
            time.sleep(0.5)
            assert workers[0].delete(f"/v1/users/{ERASED}").status_code == 200
            time.sleep(0.7)
        finally:
            stopped.set()
        for one in asking:
            one.result()
    assert set().union(*statuses) <= {200, 201, 404, 410}
    assert {200, 410} <= set().union(*statuses)
    for worker in workers:
        _service(worker).store.flush()
    url = _service(workers[0]).settings.store_url
    assert named(url, ERASED) == set()
    assert "decisions" in named(url, "u05")


@pytest.fixture
def failing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A service whose store has a defect."""

    def defect(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(_service(client).store, "erase_user", defect)
    return client


def test_no_log_names_who_is_erased(failing: TestClient) -> None:
    with structlog.testing.capture_logs() as entries:
        assert failing.delete("/v1/users/u05-of-the-log").status_code == 500
    (entry,) = entries
    assert (entry["event"], entry["route"]) == ("a request failed", "/v1/users/{user:path}")
    told = [str(entry), *traceback.format_exception(entry["exc_info"])]
    assert "u05-of-the-log" not in "".join(told)


def test_a_command_reaches_all_workers_of_a_running_service(release_root: Path, tmp_path: Path) -> None:
    store = tmp_path / "feedback.db"
    with serving(release_root, store, "--workers", "2", "--log-level", "debug") as (process, client, _):
        for _ in range(20):
            assert client.post("/v1/route", json={"user": ERASED, "task": "code"}).status_code == 200
        with open_store(f"sqlite:///{store}") as other:
            other.erase_user(ERASED)
        begun, in_turn = time.monotonic(), 0
        while in_turn < 30:  # by connections of their own, so both workers answer
            close = {"Connection": "close"}
            asked = client.post("/v1/route", json={"user": ERASED, "task": "code"}, headers=close)
            in_turn = in_turn + 1 if asked.status_code == 410 else 0
            assert time.monotonic() < begun + WITHIN_S
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert ERASED not in log
    assert named(f"sqlite:///{store}", ERASED) == set()
