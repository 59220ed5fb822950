"""An OpenAI-compatible endpoint whose models fail as they are told to.

In-process: ``httpx.ASGITransport(FakeUpstream())``, which hands over whole answers only. Behind a socket:
``with listening(FakeUpstream()) as url``.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn

Fault = Literal[
    "hang",  # no answer at all
    "slow",  # an answer that begins, and is too long for the time limit
    "error",  # 500
    "busy",  # 429
    "wrong_key",  # 401, quoting the key
    "refuse",  # 400: the caller's fault
    "too_long",  # 400: the prompt does not fit into the context
    "nonsense",  # 200, but not JSON
    "other_json",  # 200, JSON, but no answer
    "break_off",  # closes the connection in the middle of its answer
    "no_end",  # a stream that ends without having said that it is complete
    "hang_midway",  # a stream that stops after its first words
    "nonsense_midway",
    "error_midway",
]
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


@dataclass(frozen=True)
class Behaviour:
    """How a model answers: after ``delay_s``, with ``words`` that come ``gap_s`` apart in a stream."""

    fault: Fault | None = None
    words: tuple[str, ...] = ("Hello", " there", ".")
    delay_s: float = 0.0
    gap_s: float = 0.0
    usage: dict[str, int] | None = field(default_factory=lambda: dict(USAGE))


@dataclass(frozen=True)
class Received:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class FakeUpstream:
    """The endpoint; ``behaviours`` may be changed while it runs."""

    def __init__(self, **behaviours: Behaviour) -> None:
        self.behaviours = dict(behaviours)
        self.received: list[Received] = []
        self.abandoned = threading.Event()  # a caller went away before it had its answer

    def asked(self) -> list[str]:
        """Models in the order in which they were asked."""
        return [request.body["model"] for request in self.received]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        content = b""
        while (message := await receive()).get("more_body", False):
            content += message["body"]
        body = json.loads(content + message["body"])
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.received.append(Received(scope["path"], headers, body))
        behaviour = self.behaviours.get(body["model"], Behaviour())
        answer = asyncio.ensure_future(_Answer(behaviour, body, headers, send).send())
        gone = asyncio.ensure_future(_until_gone(receive))
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            self.abandoned.set()
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)
        if answer.done() and not answer.cancelled():
            answer.result()


class BreakOffError(Exception):
    """Raised in the middle of an answer, so that the server closes the connection."""


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Answer:
    def __init__(
        self, behaviour: Behaviour, body: dict[str, Any], headers: dict[str, str], send: Any
    ) -> None:
        self._behaviour, self._body, self._headers, self._send = behaviour, body, headers, send

    async def send(self) -> None:
        await asyncio.sleep(self._behaviour.delay_s)
        match self._behaviour.fault:
            case "hang":
                await asyncio.sleep(3600)
            case "slow" if not self._body.get("stream"):
                await self._start(200, [])
                await self._part(b'{"choices": ')
                await asyncio.sleep(3600)
            case "error":
                await self._error(500, "boom")
            case "busy":
                await self._error(429, "too many requests")
            case "wrong_key":
                await self._error(401, f"wrong key {self._headers.get('authorization')}")
            case "refuse":
                await self._error(
                    400, f"wrong request of {self._headers.get('authorization')}", param="top_p"
                )
            case "too_long":
                await self._error(400, "This model's maximum context length is 8 tokens, yours are 9")
            case "nonsense":
                await self._whole(200, b"<html>hello</html>")
            case "other_json":
                await self._whole(200, b'{"status": "fine"}')
            case _ if self._body.get("stream"):
                await self._stream()
            case "break_off":
                await self._start(200, [(b"content-length", b"1000")])
                await self._part(b'{"choices": ')
                raise BreakOffError
            case _:
                await self._whole(200, json.dumps(self._completion()).encode())

    def _completion(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self._behaviour.words)}
        completion = self._head("chat.completion") | {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
        }
        return completion | ({"usage": self._behaviour.usage} if self._behaviour.usage else {})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1_700_000_000, "model": self._body["model"]}

    async def _stream(self) -> None:
        fault = self._behaviour.fault
        counted = bool((self._body.get("stream_options") or {}).get("include_usage"))
        await self._start(200, [(b"content-type", b"text/event-stream")])
        await self._part(b": a comment\n\n")
        for n, word in enumerate(self._behaviour.words):
            await self._chunk([{"index": 0, "delta": {"content": word}, "finish_reason": None}], counted)
            if n == 0:
                await self._fail_midway()
            await asyncio.sleep(self._behaviour.gap_s)
        await self._chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}], counted)
        if counted and self._behaviour.usage:
            await self._chunk([], counted, self._behaviour.usage)
        if fault != "no_end":
            await self._part(b"data: [DONE]\n\n")
        await self._send({"type": "http.response.body", "body": b""})

    async def _fail_midway(self) -> None:
        match self._behaviour.fault:
            case "break_off":
                raise BreakOffError
            case "hang_midway":
                await asyncio.sleep(3600)
            case "nonsense_midway":
                await self._part(b"data: {not json\n\n")
            case "error_midway":
                await self._part(b'data: {"error": {"message": "overloaded"}}\n\n')

    async def _chunk(self, choices: list[Any], counted: bool, usage: dict[str, int] | None = None) -> None:
        chunk = self._head("chat.completion.chunk") | {"choices": choices}
        await self._part(f"data: {json.dumps(chunk | ({'usage': usage} if counted else {}))}\n\n".encode())

    async def _error(self, status: int, message: str, param: str | None = None) -> None:
        error = {"message": message, "type": "fake_error", "param": param, "code": None}
        await self._whole(status, json.dumps({"error": error}).encode())

    async def _whole(self, status: int, content: bytes) -> None:
        await self._start(status, [(b"content-type", b"application/json")])
        await self._send({"type": "http.response.body", "body": content})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _part(self, content: bytes) -> None:
        await self._send({"type": "http.response.body", "body": content, "more_body": True})


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an ASGI app on a free port of this machine, in a thread; gives its address."""
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # With the protocol named, asyncio sends at once (TCP_NODELAY); else each answer waits 40 ms for an ACK.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        sock.close()
