"""An LLM that fails again and again is left alone for a while."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import structlog

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from router.service.breaker import Breaker
from router.service.settings import BreakerSettings, ServiceSettings
from tests.service.chat.conftest import MODELS, Caller, serving
from tests.service.fake_upstream import Behaviour, FakeUpstream, Fault


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The breaker's time, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr("router.service.breaker.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def start(chat_settings: ServiceSettings) -> Iterator[Callable[..., Caller]]:
    """Starts a service with other settings of the breaker."""
    with ExitStack() as stack:

        def started(**breaker: float) -> Caller:
            settings = chat_settings.model_copy(update={"breaker": BreakerSettings(**breaker)})  # type: ignore[arg-type]
            callers = serving(settings)
            stack.callback(lambda: next(callers, None))
            return next(callers)

        yield started


class Plain:
    """The breaker as lists of what happened: since the last success, by the caller."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.of: dict[str, list[str]] = {}
        self.until: dict[str, float] = {}

    def rows(self, caller: str) -> list[tuple[str, list[str], int]]:
        return [("", self.failed, 2), (caller, self.of.setdefault(caller, []), 1)]

    def rest(self, caller: str, now: float) -> float:
        return max(0.0, *(self.until.get(name, 0.0) - now for name in ("", caller)))

    def trip(self, caller: str, now: float) -> None:
        for name, failures, least in self.rows(caller):
            if len(failures) >= 3 and len(set(failures)) >= least:
                self.until[name] = now + 10.0

    def fail(self, caller: str, now: float) -> None:
        for _, failures, _ in self.rows(caller):
            failures.append(caller)
        self.trip(caller, now)

    def succeed(self, caller: str) -> None:
        for name, failures, _ in self.rows(caller):
            failures.clear()
            self.until.pop(name, None)


@pytest.mark.parametrize("callers", ["u", "uvw"])
def test_as_a_plain_model_has_it(clock: list[float], callers: str) -> None:
    """Random outcomes of one LLM."""
    rng, breaker, plain = random.Random(0), Breaker(BreakerSettings(failures=3, rest_s=10.0)), Plain()
    n_refused = 0
    for _ in range(3000):
        clock[0] += rng.expovariate(1 / 2.0)
        caller = rng.choice(callers)
        rest_s = plain.rest(caller, clock[0])
        assert breaker.resting("ab", caller) == (frozenset("a") if rest_s else frozenset())
        assert breaker.rest_s("a", caller) == pytest.approx(rest_s)
        assert breaker.admit("a", caller) != bool(rest_s)
        if rest_s:
            n_refused += 1
            continue
        plain.trip(caller, clock[0])  # one at a time, after a rest
        outcome = rng.random()
        if outcome < 0.7:
            breaker.failed("a", caller)
            plain.fail(caller, clock[0])
        elif outcome < 0.9:
            breaker.succeeded("a", caller)
            plain.succeed(caller)
    assert n_refused > 100
    assert breaker.admit("b", "u")


def test_a_hanging_llm_costs_its_time_limit_a_few_times_only(
    start: Callable[..., Caller], upstream: FakeUpstream
) -> None:
    caller = start(failures=2, rest_s=1000.0)
    upstream.behaviours["up-brief"] = Behaviour("hang")
    begun_s = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            assert caller.ask("u02").json()["fairpath"]["failed"] == [{"llm": "brief", "reason": "timeout"}]
    assert [entry["llm"] for entry in logs if entry["event"] == "an LLM rests"] == ["brief"]
    answers = [caller.ask("u02").json() for _ in range(4)]
    assert upstream.asked() == ["up-brief", "up-kind"] * 2 + ["up-kind"] * 4  # no time limit more
    # The decision was for what could answer, and says so.
    assert {answer["fairpath"]["llm"] for answer in answers} == {"kind"}
    assert [answer["fairpath"]["failed"] for answer in answers] == [[]] * 4
    record = caller.service.store.decision(answers[0]["fairpath"]["decision_id"])
    assert record is not None
    assert "brief" not in record.offered
    named = caller.ask("u02", model="brief")
    assert named.status_code == 503
    assert 1000 - (time.monotonic() - begun_s) <= int(named.headers["retry-after"]) <= 1000
    assert "'brief': failed too often, is asked again in" in named.json()["error"]["message"]


def test_after_its_rest_it_is_tried_again(
    start: Callable[..., Caller], upstream: FakeUpstream, clock: list[float]
) -> None:
    caller = start(failures=2, rest_s=30.0)
    upstream.behaviours["up-brief"] = Behaviour("error")
    for _ in range(3):
        caller.ask("u02")
    assert upstream.asked().count("up-brief") == 2
    clock[0] += 31.0
    assert caller.ask("u02").json()["fairpath"]["failed"] == [{"llm": "brief", "reason": "status"}]
    assert caller.ask("u02").json()["fairpath"]["failed"] == []
    assert upstream.asked().count("up-brief") == 3
    clock[0] += 31.0
    upstream.behaviours.clear()
    assert [caller.ask("u02").json()["model"] for _ in range(3)] == ["brief"] * 3


def test_where_all_rest_it_is_told_at_once(start: Callable[..., Caller], upstream: FakeUpstream) -> None:
    caller = start(failures=1, rest_s=60.0)
    upstream.behaviours = dict.fromkeys(MODELS.values(), Behaviour("error"))
    assert caller.ask("u02").status_code == 502
    n_asked = len(upstream.received)
    refused = caller.ask("u02")
    assert (refused.status_code, len(upstream.received)) == (503, n_asked)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "upstream_error"


def test_a_callers_mistake_is_no_failure(start: Callable[..., Caller], upstream: FakeUpstream) -> None:
    caller = start(failures=1, rest_s=60.0)
    for fault in ("refuse", "too_long"):
        upstream.behaviours = dict.fromkeys(MODELS.values(), Behaviour(fault))  # type: ignore[arg-type]
        for _ in range(2):
            assert caller.ask("u02").status_code == 400
    upstream.behaviours.clear()
    assert caller.ask("u02").json()["model"] == "brief"


def test_one_caller_does_not_let_an_llm_rest_for_others(
    start: Callable[..., Caller], upstream: FakeUpstream
) -> None:
    caller = start(failures=2, rest_s=1000.0)
    upstream.behaviours["up-brief"] = Behaviour("error")
    for _ in range(3):
        caller.ask("greedy", model="brief")
    assert caller.ask("greedy", model="brief").status_code == 503
    upstream.behaviours.clear()
    assert caller.ask("u02").json()["model"] == "brief"
    upstream.behaviours["up-brief"] = Behaviour("error")
    assert [caller.ask(f"v{n}", model="brief").status_code for n in range(3)] == [502, 502, 503]


def test_an_answer_too_long_for_the_time_limit_is_no_failure(
    start: Callable[..., Caller], upstream: FakeUpstream
) -> None:
    caller = start(failures=1, rest_s=1000.0)
    upstream.behaviours["up-brief"] = Behaviour("slow")
    assert caller.ask("u02", model="brief").status_code == 504
    upstream.behaviours.clear()
    assert caller.ask("u02", model="brief").status_code == 200


@pytest.mark.parametrize("fault", ["hang_midway", "break_off", "no_end"])
def test_a_stream_counts_by_its_end(
    start: Callable[..., Caller], upstream: FakeUpstream, fault: Fault
) -> None:
    caller = start(failures=2, rest_s=1000.0)
    upstream.behaviours["up-brief"] = Behaviour(fault)
    for _ in range(2):
        assert caller.ask("u02", model="brief", stream=True).status_code == 200
    assert caller.ask("u02", model="brief", stream=True).status_code == 503


def test_candidates_that_rest_say_so(start: Callable[..., Caller], upstream: FakeUpstream) -> None:
    caller = start(failures=1, rest_s=60.0)
    upstream.behaviours["up-brief"] = Behaviour("error")
    only = {"fairpath": {"candidates": ["brief"]}}
    assert caller.ask("u02", **only).status_code == 502
    refused = caller.ask("u02", **only)
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "'brief': failed too often, is asked again in" in refused.json()["error"]["message"]
    both = {"fairpath": {"candidates": ["brief", "kind"]}}
    assert caller.ask("u02", **both).json()["model"] == "kind"
    nobody = caller.ask("u02", fairpath={"candidates": ["unlisted-anywhere"]})
    assert nobody.status_code == 422
