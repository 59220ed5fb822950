"""A prompt that is too long for an LLM, as its upstream says: one with a larger context stands in."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")

from router.service.settings import UpstreamSettings
from router.service.upstreams import ContextError, RefusedError, Upstreams
from tests.service.chat.conftest import MODELS, Caller
from tests.service.fake_upstream import Behaviour, FakeUpstream

TOO_LONG = Behaviour("too_long")
SAID = {
    "Azure": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"},
    "OpenAI of old": {
        "message": "This model's maximum context length is 4097 tokens. However, you asked for 9"
    },
    "vLLM of late": {
        "message": "The decoder prompt (length 9) is longer than the maximum model length of 8."
    },
    "vLLM of old": {
        "message": "The prompt (total length 9) is too long to fit into the model (context length 8)."
    },
    "llama-cpp-python": {"message": "Requested tokens (516) exceed context window of 512"},
    "SGLang": {"message": "The input (9 tokens) is longer than the model's context length (8 tokens)."},
    "llama.cpp of old": {"message": "the request exceeds the available context size, try increasing it"},
    "Anthropic's answer": {"message": "input length and `max_tokens` exceed context limit: 9 + 8 > 10"},
    "OpenAI": {"message": "Please reduce the length.", "code": "context_length_exceeded"},
    "vLLM": {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000"},
    "llama.cpp": {"message": "the request exceeds it", "type": "exceed_context_size_error"},
    "Mistral": {"message": "Prompt contains 40000 tokens, too large for 32768 maximum context length"},
    "Anthropic": {"message": "prompt is too long: 213462 tokens > 200000 maximum"},
    "Google": {"message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."},
    "Bedrock": {"message": "Input is too long for requested model."},
}


def contexts(caller: Caller, **tokens: float) -> None:
    """Let the catalogue know other contexts; those not named are unknown."""
    catalogue = caller.service.live.serving.catalogue
    known = [tokens.get(name.replace("-", "_"), np.inf) for name in catalogue.names]
    catalogue.__dict__["context_tokens"] = np.array(known)


@pytest.mark.parametrize("stream", [False, True])
def test_an_llm_with_a_larger_context_stands_in(caller: Caller, upstream: FakeUpstream, stream: bool) -> None:
    contexts(caller, brief=1000, kind=999, unused_price=5000)
    upstream.behaviours["up-brief"] = TOO_LONG
    answer = caller.ask("u02", stream=stream)
    assert answer.status_code == 200, answer.text
    assert upstream.asked() == ["up-brief", "up-third"]  # 'kind', which is liked better, has less room
    assert answer.headers["x-fairpath-fallbacks"] == "brief"
    failed = '{"llm":"brief","reason":"context"}'
    assert failed in answer.text.replace(" ", "")
    metrics = caller.client.get("/metrics").text
    assert 'from_llm="brief",reason="context",to_llm="unused-price"' in metrics
    assert "fairpath_upstream_failures_total{" not in metrics  # nobody has failed


def test_where_contexts_are_not_known_the_others_are_asked(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours = {MODELS[llm]: TOO_LONG for llm in ("brief", "kind")}
    assert caller.ask("u02").json()["model"] == "unused-price"
    assert upstream.asked() == ["up-brief", "up-kind", "up-third"]


def test_too_long_for_all_is_the_callers_mistake(caller: Caller, upstream: FakeUpstream) -> None:
    contexts(caller, brief=1000, kind=999, unused_price=5000)
    upstream.behaviours = dict.fromkeys(MODELS.values(), TOO_LONG)
    answer = caller.ask("u02")
    assert (answer.status_code, upstream.asked()) == (400, ["up-brief", "up-third"])
    assert answer.json()["error"]["message"] == "This model's maximum context length is 8 tokens, yours are 9"
    named = caller.ask("u02", model="brief")
    assert (named.status_code, named.json()["error"]["type"]) == (400, "fake_error")
    upstream.behaviours["up-third"] = Behaviour("error")
    assert caller.ask("u02").status_code == 502  # that one might have answered


def test_nothing_is_paid_for_a_prompt_that_was_refused(caller: Caller, upstream: FakeUpstream) -> None:
    upstream.behaviours = dict.fromkeys(MODELS.values(), TOO_LONG)
    caller.ask("u02")
    period = caller.service.budgets.period(1.8e9)
    assert caller.service.store.spent_usd(["user:u02"], period) == {"user:u02": 0.0}


@pytest.mark.parametrize("provider", SAID)
@pytest.mark.parametrize("status", [400, 422])
def test_providers_say_it_in_their_own_words(provider: str, status: int) -> None:
    assert isinstance(_refused(status, SAID[provider]), ContextError)


@pytest.mark.parametrize(
    "message",
    [
        "wrong request",
        "'temperature' is too large",
        "invalid message content",
        "Invalid value: 'messages[0].content' must not mention context window",
        "unknown field 'context_length'",
        "'context_size' must be at most 8",
    ],
)
def test_other_mistakes_are_none_of_the_context(message: str) -> None:
    refused = _refused(400, {"message": message})
    assert not isinstance(refused, ContextError)


def _refused(status: int, error: dict[str, str]) -> RefusedError:
    content = json.dumps({"error": error}).encode()

    async def run() -> RefusedError:
        transport = httpx.MockTransport(lambda request: httpx.Response(status, content=content))
        settings = UpstreamSettings(name="one", base_url="http://one/v1", models={"a": "a1"})
        upstreams = Upstreams([settings], transport=transport)
        with pytest.raises(RefusedError) as raised:
            await upstreams.complete(upstreams.targets["a"], {"messages": []})
        await upstreams.aclose()
        return raised.value

    return asyncio.run(run())
