from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any

import pytest

from router.service.settings import ServiceSettings, SessionSettings
from tests.service.chat.conftest import Caller, serving
from tests.service.fake_upstream import Behaviour, FakeUpstream

with_caller = contextmanager(serving)
ONLY_KIND = {"candidates": ["kind"]}


@pytest.fixture
def loyal(chat_settings: ServiceSettings) -> Any:
    """A caller of a service whose sessions hardly ever change their LLM."""
    sessions = SessionSettings(margin=50.0, ttl_s=60.0)
    yield from serving(chat_settings.model_copy(update={"sessions": sessions}))


def turns(first: str = "code about topic 3", then: str = "and shorter?") -> list[dict[str, str]]:
    return [
        {"role": "user", "content": first},
        {"role": "assistant", "content": "..."},
        {"role": "user", "content": then},
    ]


@pytest.mark.parametrize(
    ("headers", "fields"),
    [({"X-Session-Id": "s1"}, {}), ({}, {"metadata": {"session_id": "s1"}}), ({}, {"messages": turns()})],
)
def test_a_session_keeps_its_llm(loyal: Caller, headers: dict[str, str], fields: dict[str, Any]) -> None:
    first = {**fields, "messages": turns()[:1]} if "messages" in fields else fields
    assert loyal.ask("u02", headers, fairpath=ONLY_KIND, **first).json()["model"] == "kind"
    again = loyal.ask("u02", headers, **fields).json()
    assert (again["model"], again["fairpath"]["kept_for_session"]) == ("kind", True)


def test_sessions_are_of_one_user_and_name_only(loyal: Caller) -> None:
    loyal.ask("u02", {"X-Session-Id": "s1"}, fairpath=ONLY_KIND)
    for user, session in (("u04", "s1"), ("u02", "s2")):
        answer = loyal.ask(user, {"X-Session-Id": session}).json()
        assert (answer["model"], answer["fairpath"]["kept_for_session"]) == ("brief", False)


def test_a_new_conversation_with_the_same_beginning_is_no_session(loyal: Caller) -> None:
    loyal.ask("u02", fairpath=ONLY_KIND)
    assert loyal.ask("u02").json()["model"] == "brief"
    assert loyal.ask("u02", messages=turns("poems about topic 1")).json()["model"] == "brief"


def test_a_session_leaves_for_what_is_clearly_better(chat_settings: ServiceSettings) -> None:
    sessions = SessionSettings(margin=0.01)
    with with_caller(chat_settings.model_copy(update={"sessions": sessions})) as caller:
        caller.ask("u02", {"X-Session-Id": "s1"}, fairpath=ONLY_KIND)
        assert caller.ask("u02", {"X-Session-Id": "s1"}).json()["model"] == "brief"


def test_a_session_leaves_an_llm_that_is_excluded_or_fails(loyal: Caller, upstream: FakeUpstream) -> None:
    headers = {"X-Session-Id": "s1"}
    loyal.ask("u02", headers, fairpath=ONLY_KIND)
    assert loyal.ask("u02", headers, fairpath={"exclude": ["kind"]}).json()["model"] == "brief"
    loyal.ask("u02", headers, fairpath=ONLY_KIND)
    upstream.behaviours["up-kind"] = Behaviour("error")
    moved = loyal.ask("u02", headers).json()
    assert (moved["model"], moved["fairpath"]["kept_for_session"]) == ("brief", False)
    assert loyal.ask("u02", headers).json()["fairpath"]["failed"] == []  # it stays where it moved to


def test_a_stream_that_broke_off_is_no_reason_to_stay(loyal: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours["up-kind"] = Behaviour("break_off")
    loyal.ask("u02", {"X-Session-Id": "s1"}, fairpath=ONLY_KIND, stream=True)
    assert loyal.ask("u02", {"X-Session-Id": "s1"}).json()["model"] == "brief"


def test_a_session_is_forgotten(loyal: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    loyal.ask("u02", {"X-Session-Id": "s1"}, fairpath=ONLY_KIND)
    later = time.time() + 61
    monkeypatch.setattr("router.service.sessions.time.time", lambda: later)
    assert loyal.ask("u02", {"X-Session-Id": "s1"}).json()["model"] == "brief"


def test_other_workers_know_the_session(chat_settings: ServiceSettings) -> None:
    settings = chat_settings.model_copy(update={"sessions": SessionSettings(margin=50.0)})
    with with_caller(settings) as one, with_caller(settings) as other:
        one.ask("u02", {"X-Session-Id": "s1"}, fairpath=ONLY_KIND)
        assert other.ask("u02", {"X-Session-Id": "s1"}).json()["model"] == "kind"
