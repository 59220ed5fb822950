"""An answer on its way to the caller, chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from router.service.attempts import Attempt, End
from router.service.events import DONE, event
from router.service.upstreams import AnswerStream, UpstreamError


class ChatStream:
    """Events of one answer; :meth:`aclose` has to be called, also where they were not read.

    Parameters
    ----------
    attempt
        What is answered.
    stream
        The upstream's answer.
    first
        Its first chunk; None where it is complete without one.
    with_usage
        Whether the caller wants the tokens used: the upstream is always asked for them.
    """

    def __init__(
        self, attempt: Attempt, stream: AnswerStream, first: dict[str, Any] | None, *, with_usage: bool
    ) -> None:
        self.headers = attempt.headers
        self._attempt = attempt
        self._stream = stream
        self._first = first
        self._with_usage = with_usage
        self._usage: object = None
        self._answer_bytes = 0
        self._end: End = "abandoned"

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: the chunks and ``[DONE]`` or, where the upstream fails, an error without it."""
        chunk = self._first
        shape: Callable[[dict[str, Any]], dict[str, Any]] = self._attempt.labelled
        try:
            while chunk is not None:
                if (shown := self._shown(chunk)) is not None:
                    yield event(shape(shown))
                    shape = self._attempt.named
                chunk = await self._stream.next()
        except UpstreamError as error:
            self._attempt.failed(error)
            self._end = "failed"
            await self.aclose()
            yield event(
                {
                    "error": {
                        "message": str(error),
                        "type": "upstream_error",
                        "param": None,
                        "code": error.reason,
                    }
                }
            )
        else:
            self._end = "complete"
            await self.aclose()  # before the caller can ask again
            yield event(DONE)

    async def aclose(self) -> None:
        """End the request at the upstream, and pay for what came."""
        await self._stream.aclose()
        await self._attempt.close(self._usage, self._answer_bytes, self._end)

    def _shown(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """A chunk without what the caller did not ask for; None where nothing is left."""
        self._usage = chunk.get("usage") or self._usage
        if chunk["choices"]:
            self._answer_bytes += len(orjson.dumps([choice["delta"] for choice in chunk["choices"]]))
        if self._with_usage or "usage" not in chunk:
            return chunk
        return {name: value for name, value in chunk.items() if name != "usage"} if chunk["choices"] else None


class ChatStreamResponse(StreamingResponse):
    """The response that carries a :class:`ChatStream`, and closes it whatever happens to the caller."""

    media_type = "text/event-stream"

    def __init__(self, stream: ChatStream) -> None:
        super().__init__(stream.events(), headers={**stream.headers, "Cache-Control": "no-cache"})
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a caller that goes away ends them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stream.aclose()
