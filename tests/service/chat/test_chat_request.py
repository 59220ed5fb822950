from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from pydantic import ValidationError

from router.errors import ParameterError
from router.service.chat_request import ChatRequest
from router.service.events import EventParser, event


def request_of(headers: dict[str, str] | None = None, **fields: Any) -> ChatRequest:
    body = {"model": "auto", "messages": [{"role": "user", "content": "hello"}], "user": "ada"} | fields
    return ChatRequest.parse(json.dumps(body).encode(), headers or {})


def test_the_query_is_the_text_of_the_users_last_message() -> None:
    parts = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "two"},
    ]
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "zero"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "user", "content": parts},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    request = request_of(messages=messages)
    assert request.text == "one\ntwo"
    assert request.continued
    assert request.capabilities == {"vision"}
    assert request_of(messages=[{"role": "system", "content": "be kind"}]).text is None
    assert request_of(messages=[{"role": "user", "content": ""}]).text is None


def test_tools_and_demands_are_capabilities() -> None:
    request = request_of(tools=[{"type": "function"}], fairpath={"capabilities": ["audio"]})
    assert request.capabilities == {"tools", "audio"}
    assert request_of(tools=[]).capabilities == frozenset()


def test_tokens_are_estimated_as_documented() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:," + "x" * 10_000}}
    messages = [
        {"role": "system", "content": "ä" * 50},  # 100 bytes
        {"role": "user", "content": [{"type": "text", "text": "x" * 99}, image]},
    ]
    tools = [{"a": "b"}]  # 11 bytes as JSON
    assert request_of(messages=messages).prompt_tokens == 2 * 4 + 1000 + 50
    assert request_of(messages=messages, tools=tools).prompt_tokens == 2 * 4 + 1000 + 53


def test_the_answers_limit_has_two_names() -> None:
    assert request_of().max_answer_tokens is None
    assert request_of(max_tokens=10).max_answer_tokens == 10
    assert request_of(max_tokens=10, max_completion_tokens=20).max_answer_tokens == 20


def test_the_body_wins_over_headers() -> None:
    headers = {
        "x-fairpath-candidates": "a, b,,c ",
        "x-fairpath-max-cost-usd": "0.5",
        "x-fairpath-max-latency-ms": "100",
        "x-fairpath-task": "code",
    }
    demands = request_of(headers, fairpath={"task": "poems"}).demands
    assert demands.candidates == ["a", "b", "c"]
    assert (demands.max_cost_usd, demands.max_latency_ms, demands.task) == (0.5, 100.0, "poems")


def test_what_is_meant_for_the_router_is_not_forwarded() -> None:
    request = request_of(metadata={"session_id": "s", "other": 1}, fairpath={}, seed=7)
    assert request.forwarded["metadata"] == {"other": 1}
    assert request.forwarded["seed"] == 7
    assert "fairpath" not in request.forwarded
    assert "metadata" not in request_of(metadata={"session_id": "s"}).forwarded


def test_sessions_differ_by_key_user_and_name() -> None:
    def named(user: str, name: str) -> ChatRequest:
        return request_of({"x-session-id": name}, user=user)

    ids = [
        named("ada", "s").session_id(None),
        named("ada", "s").session_id("k"),
        named("ben", "s").session_id(None),
        named("ada", "t").session_id(None),
        request_of().session_id(None),
        request_of({"x-session-id": "hello"}).session_id(None),
    ]
    assert len(set(ids)) == len(ids)
    assert named("ada", "s").session_id(None) == request_of(metadata={"session_id": "s"}).session_id(None)
    longer = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert request_of(messages=longer).session_id(None) == request_of().session_id(None)
    assert request_of(messages=[{"role": "system", "content": "x"}]).session_id(None) is None


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "no role"}]}, "role"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"user": "a\x00b"}, "user"),
        ({"model": None}, "model"),
        ({"fairpath": {"colour": "red"}}, "colour"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError, match=place):
        request_of(**fields)


@pytest.mark.parametrize("value", ["cheap", "nan", "-1", "inf"])
def test_a_header_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="max_cost_usd"):
        request_of({"x-fairpath-max-cost-usd": value})


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"model": NaN}', b'{"a":' * 400 + b"1" + b"}" * 400, b'"\\ud800"']
)
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(ParameterError, match="must be JSON"):
        ChatRequest.parse(content, {})


# Server-sent events


@given(
    st.lists(st.text().map(lambda text: json.dumps(text, ensure_ascii=False).encode()), max_size=6),
    st.lists(st.integers(0, 200), max_size=10),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_are_the_same_however_their_bytes_are_cut(
    data: list[bytes], cuts: list[int], end: bytes
) -> None:
    sent = b": a comment" + end + end + b"".join(event(one).replace(b"\n", end) for one in data)
    bounds = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    parser = EventParser(10_000)
    found = [one for start, stop in pairwise(bounds) for one in parser.feed(sent[start:stop])]
    assert found == data


def test_an_event_of_several_lines_is_one() -> None:
    assert EventParser(100).feed(b"event: x\ndata: a\ndata:b\nid: 1\n\ndata: c\n\n") == [b"a\nb", b"c"]


@pytest.mark.parametrize("part", [b"x" * 40, b"data: " + b"x" * 20 + b"\n"])
def test_an_event_without_end_is_refused(part: bytes) -> None:
    parser = EventParser(100)
    parser.feed(part)
    parser.feed(part)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        parser.feed(3 * part)
