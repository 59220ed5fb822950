from __future__ import annotations

import json
import time

import httpx
import pytest

from router.service.settings import ServiceSettings
from router.service.store import open_store, period_of
from tests.service.chat.conftest import QUESTION, Caller
from tests.service.fake_upstream import USAGE, Behaviour, FakeUpstream, Fault


def events_of(answer: httpx.Response) -> list:
    """Data of the events of an answer, as JSON, but for the last word."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    data = [part.removeprefix("data: ") for part in answer.text.split("\n\n")[:-1]]
    return [part if part == "[DONE]" else json.loads(part) for part in data]


def words_of(events: list) -> str:
    deltas = [choice["delta"] for event in events if event != "[DONE]" for choice in event.get("choices", ())]
    return "".join(delta.get("content", "") for delta in deltas)


def test_a_stream_is_passed_on_with_the_name_of_who_answers(caller: Caller, upstream: FakeUpstream) -> None:
    answer = caller.ask("u03", stream=True)
    events = events_of(answer)
    assert answer.headers["x-fairpath-model"] == "kind"
    assert events[-1] == "[DONE]"
    assert words_of(events) == "Hello there."
    assert {event["model"] for event in events[:-1]} == {"kind"}
    assert events[0]["fairpath"]["decision_id"] == answer.headers["x-fairpath-decision-id"]
    assert not any("fairpath" in event for event in events[1:-1])
    assert not any("usage" in event for event in events[:-1])
    assert upstream.received[0].body["stream_options"] == {"include_usage": True}


def test_usage_is_told_to_who_asks_for_it(caller: Caller) -> None:
    events = events_of(caller.ask(stream=True, stream_options={"include_usage": True}))
    assert (events[-2]["choices"], events[-2]["usage"]) == ([], USAGE)


@pytest.mark.parametrize("fault", ["hang", "error", "nonsense", "other_json"])
def test_before_its_first_chunk_a_stream_falls_back(
    caller: Caller, upstream: FakeUpstream, fault: Fault
) -> None:
    upstream.behaviours["up-brief"] = Behaviour(fault)
    answer = caller.ask("u02", stream=True)
    assert words_of(events_of(answer)) == "Hello there."
    assert upstream.asked() == ["up-brief", "up-kind"]
    assert answer.headers["x-fairpath-fallbacks"] == "brief"


def test_where_no_stream_begins_the_error_is_an_answer_of_its_own(
    caller: Caller, upstream: FakeUpstream
) -> None:
    upstream.behaviours = {f"up-{name}": Behaviour("error") for name in ("brief", "kind", "third")}
    answer = caller.ask(stream=True)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("break_off", "broken_off"),
        ("no_end", "broken_off"),
        ("hang_midway", "timeout"),
        ("nonsense_midway", "malformed"),
        ("error_midway", "broken_off"),
    ],
)
def test_after_its_first_chunk_a_stream_ends_with_an_error(
    caller: Caller, upstream: FakeUpstream, fault: Fault, code: str
) -> None:
    upstream.behaviours["up-brief"] = Behaviour(fault)
    events = events_of(caller.ask("u02", stream=True))
    assert words_of(events).startswith("Hello")
    assert events[-1]["error"]["code"] == code
    assert events[-1]["error"]["type"] == "upstream_error"
    assert "[DONE]" not in events
    assert upstream.asked() == ["up-brief"]


def test_chunks_are_not_held_back(chat_url: str, upstream: FakeUpstream) -> None:
    upstream.behaviours["up-brief"] = Behaviour(words=("a", "b", "c"), gap_s=0.1)
    body = {"model": "auto", "user": "u02", "messages": QUESTION, "stream": True}
    with httpx.stream("POST", f"{chat_url}/v1/chat/completions", json=body) as answer:
        came_s = [time.monotonic() for _ in answer.iter_raw()]
    assert came_s[-1] - came_s[0] > 0.25


def test_a_caller_who_goes_away_ends_the_stream_at_the_upstream(
    chat_url: str, upstream: FakeUpstream
) -> None:
    upstream.behaviours["up-brief"] = Behaviour(words=("word ",) * 1000, gap_s=0.02)
    body = {"model": "auto", "user": "u02", "messages": QUESTION, "stream": True}
    with httpx.stream("POST", f"{chat_url}/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    assert upstream.abandoned.wait(5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_does_not_wait_ends_the_request_at_the_upstream_and_pays_for_the_prompt(
    chat_settings: ServiceSettings, chat_url: str, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.behaviours["up-brief"] = Behaviour(delay_s=30)
    body = {"model": "auto", "user": "u02", "messages": QUESTION, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{chat_url}/v1/chat/completions", json=body, timeout=1)
    assert upstream.abandoned.wait(5)
    assert upstream.asked() == ["up-brief"]
    with open_store(chat_settings.store_url) as store:
        until_s = time.monotonic() + 5
        spent = 0.0
        while not 0 < spent < 1e-5:  # until then the whole answer's price is reserved
            assert time.monotonic() < until_s, spent
            time.sleep(0.01)
            spent = store.spent_usd(["user:u02"], period_of(time.time(), "month"))["user:u02"]
