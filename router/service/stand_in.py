"""A stand-in for upstreams: chats are answered with a note that names the model, and nobody is asked.

To try the service, or an application in front of it, where no LLM can be reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import orjson

from router.service.settings import UpstreamSettings
from router.service.tokens import tokens_of
from router.service.upstreams import Upstreams


def open_stand_in(llms: Iterable[str]) -> Upstreams:
    """Upstreams where each of the LLMs is played."""
    settings = UpstreamSettings(
        name="stand-in", base_url="http://stand-in.invalid/v1", models={llm: llm for llm in llms}
    )
    return Upstreams([settings], transport=_StandIn())


class _StandIn(httpx.AsyncBaseTransport):
    """Answers in place of the network, in OpenAI's form, whole or in chunks."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        body = orjson.loads(content)
        text = f"(No model was asked: this is a stand-in for {body['model']}, which was chosen to answer.)"
        prompt_tokens, completion_tokens = (tokens_of(len(part)) for part in (content, text))
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            answer = _described("chat.completion", body) | {"choices": [choice], "usage": usage}
            return httpx.Response(200, json=answer)
        events = b"".join(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in _chunks(body, text, usage))
        return httpx.Response(
            200, content=events + b"data: [DONE]\n\n", headers={"Content-Type": "text/event-stream"}
        )


def _chunks(body: dict[str, Any], text: str, usage: dict[str, int]) -> Iterator[dict[str, Any]]:
    described = _described("chat.completion.chunk", body)
    for word in text.split(" "):
        delta = {"role": "assistant", "content": f"{word} "}
        yield described | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield described | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield described | {"choices": [], "usage": usage}


def _described(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "stand-in", "object": kind, "created": 0, "model": body["model"]}
