"""The OpenAI-compatible endpoints that answer: which LLM is where, asking it, and telling failures apart.

A failure is the upstream's (:class:`UpstreamError`: another LLM may be tried) or the caller's
(:class:`RefusedError`: the request is wrong wherever it goes), but for prompts that an LLM finds too long
(:class:`ContextError`): one with a larger context may be tried. An upstream's key leaves this module only in
the ``Authorization`` header of requests to that upstream; nothing of the caller's headers does.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import httpx
import orjson

from router.errors import RouterError
from router.service.events import DONE, EventParser
from router.service.settings import UpstreamSettings

Reason = Literal["connection", "timeout", "status", "malformed", "broken_off"]

MAX_ANSWER_BYTES = 16 * 2**20
"""Longest answer that is taken from an upstream, whole or as a stream."""
_MAX_EVENT_BYTES = 2**20
_MAX_ERROR_BYTES = 2**16
# What these say of the request holds at every upstream; other errors (a wrong key, no credit, an unknown
# model, too many requests) are the upstream's or its configuration's.
_CALLERS_FAULTS = frozenset({400, 413, 415, 422})
# Codes and types of OpenAI, Azure and others; of llama.cpp.
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
# Of the others the words, in whole: a message may quote the request, which may speak of contexts too.
_TOO_LONG = re.compile(
    r"^this model's maximum context length is \d+"  # OpenAI of old, vLLM
    r"|is longer than the (maximum model length of \d+|model's context length)"  # vLLM, SGLang
    r"|is too long to fit into the model \(context length \d+\)"  # vLLM
    r"|exceeds? the (available context size|model's maximum context length)"  # llama.cpp, SGLang
    r"|^requested tokens \(\d+\) exceed context window of \d+"  # llama-cpp-python
    r"|too large for (model with )?\d+ maximum context length"  # Mistral
    r"|^prompt is too long: \d+ tokens|exceed context limit: \d+"  # Anthropic
    r"|^the input token count( \(\d+\))? exceeds the maximum number of tokens"  # Google
    r"|^input is too long for requested model",  # Bedrock
    re.IGNORECASE,
)
_NOT_REACHED = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
_END_S = 0.1
_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)


class UpstreamError(RouterError):
    """An upstream did not answer as it should; the message names the LLM and what happened.

    Attributes
    ----------
    reason
        ``connection``: not reached; ``timeout``; ``status``: an error that is not the caller's;
        ``malformed``: not an answer of this protocol, or too long; ``broken_off``: lost before the end of the
        answer.
    counts
        Whether it tells against the upstream; not so where an answer had begun and was too long for the time
        limit.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.counts = True

    @property
    def charged(self) -> bool:
        """Whether the upstream may charge for the prompt: it took it, and did not refuse it."""
        return self.reason not in ("connection", "status")


class RefusedError(RouterError):
    """The upstream says that the request itself is wrong.

    Attributes
    ----------
    status
        HTTP status.
    error
        ``message``, ``type``, ``param`` and ``code`` in OpenAI's form.
    """

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.status = status
        self.error = error


class ContextError(RefusedError):
    """The upstream says that the LLM's context is too small for the prompt."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an LLM is reached.

    Attributes
    ----------
    llm
        Name here.
    model
        Name at the upstream.
    upstream
        The upstream's name.
    url
        Address of its chat completions.
    timeout_s
        Longest wait for an answer, or for the next part of a stream.
    """

    llm: str
    model: str
    upstream: str
    url: str
    timeout_s: float
    connect_timeout_s: float
    secret: str | None = field(repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request; answers are asked for uncompressed, so that their size is what is read."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self.secret:
            headers["Authorization"] = f"Bearer {self.secret}"
        return headers

    def without_secret(self, text: str) -> str:
        """Text in which the key, should the upstream have quoted it, is blotted out."""
        return text.replace(self.secret, "***") if self.secret else text


class Upstreams:
    """All upstreams behind one pool of connections.

    Parameters
    ----------
    settings
        The upstreams. An LLM that several have is asked of the first.
    transport
        Carries the requests instead of the network.

    Raises
    ------
    ParameterError
        A key's environment variable is not set.
    """

    def __init__(
        self,
        settings: Sequence[UpstreamSettings],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._targets: dict[str, Target] = {}
        for upstream in settings:
            secret = upstream.key()
            url = f"{upstream.base_url.rstrip('/')}/chat/completions"
            for llm, model in upstream.models.items():
                target = Target(
                    llm, model, upstream.name, url, upstream.timeout_s, upstream.connect_timeout_s, secret
                )
                self._targets.setdefault(llm, target)
        self._client = httpx.AsyncClient(transport=transport, limits=_LIMITS)

    @property
    def targets(self) -> Mapping[str, Target]:
        """Where each LLM is reached, by its name here."""
        return self._targets

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def complete(self, target: Target, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a whole answer.

        Parameters
        ----------
        target
            Whom to ask.
        body
            The request; its model is replaced by the upstream's name.

        Raises
        ------
        UpstreamError, RefusedError
            There is none.
        """
        has_begun = False
        try:
            with _failures(target), anyio.fail_after(target.timeout_s):
                async with aclosing(await self._send(target, body)) as response:
                    has_begun = True
                    content = await _read(response, MAX_ANSWER_BYTES, target)
        except UpstreamError as error:
            error.counts = not (has_begun and error.reason == "timeout")
            raise
        answer = _json_object(content, target)
        if not _has_choices(answer, "message") or not answer["choices"]:
            raise UpstreamError(f"{target.llm!r}: the answer has no choices", "malformed")
        return answer

    async def stream(self, target: Target, body: Mapping[str, Any]) -> AnswerStream:
        """Ask for an answer in chunks; parameters and errors as in :meth:`complete`."""
        with _failures(target), anyio.fail_after(target.timeout_s):
            return AnswerStream(await self._send(target, body), target)

    async def _send(self, target: Target, body: Mapping[str, Any]) -> httpx.Response:
        """Response of which the body is not read yet; an error if it is not an answer."""
        request = self._client.build_request(
            "POST",
            target.url,
            headers=target.headers,
            content=orjson.dumps({**body, "model": target.model}),
            timeout=httpx.Timeout(target.timeout_s, connect=target.connect_timeout_s),
        )
        response = await self._client.send(request, stream=True)
        if response.status_code == httpx.codes.OK:
            return response
        async with aclosing(response):
            if response.status_code in _CALLERS_FAULTS:
                content = await _read(response, _MAX_ERROR_BYTES, target)
                error = _error_of(content, target)
                raise (ContextError if _says_too_long(error) else RefusedError)(response.status_code, error)
        raise UpstreamError(f"{target.llm!r}: the upstream answered {response.status_code}", "status")


class AnswerStream:
    """Chunks of one answer, as they come.

    Parameters
    ----------
    response
        A response whose body has not been read.
    target
        Who answers.
    """

    def __init__(self, response: httpx.Response, target: Target) -> None:
        self._response = response
        self._target = target
        self._received = response.aiter_bytes()
        self._n_bytes = 0
        self._parser = EventParser(_MAX_EVENT_BYTES)
        self._events: deque[bytes] = deque()
        self._complete = False

    async def next(self) -> dict[str, Any] | None:
        """The next chunk, or None where the upstream said that the answer was complete.

        Raises
        ------
        UpstreamError
            The stream broke off, is too slow or too long, or holds something else.
        """
        with _failures(self._target), anyio.fail_after(self._target.timeout_s):
            while not self._events:
                await self._receive()
        event = self._events.popleft()
        if event == DONE:
            self._complete = True
            return None
        chunk = _json_object(event, self._target)
        if chunk.get("error"):
            raise UpstreamError(f"{self._target.llm!r}: the upstream failed during its answer", "broken_off")
        if not _has_choices(chunk, "delta"):
            raise UpstreamError(f"{self._target.llm!r}: the stream holds something else", "malformed")
        return chunk

    async def _receive(self) -> None:
        received = await anext(self._received, None)
        if received is None:
            raise UpstreamError(f"{self._target.llm!r}: the stream ended before the answer did", "broken_off")
        self._n_bytes += len(received)
        try:
            self._events.extend(self._parser.feed(received))
        except ValueError as error:
            raise UpstreamError(f"{self._target.llm!r}: {error}", "malformed") from None
        if self._n_bytes > MAX_ANSWER_BYTES:
            raise _too_long(self._target, MAX_ANSWER_BYTES)

    async def aclose(self) -> None:
        """End the request, whether or not the answer is complete."""
        with anyio.CancelScope(shield=True):
            if self._complete:  # a connection whose response was read to its end can be used again
                with anyio.move_on_after(_END_S), suppress(httpx.HTTPError):
                    await anext(self._received, None)
            await self._response.aclose()


@contextmanager
def _failures(target: Target) -> Iterator[None]:
    """Turn what the network raises into :class:`UpstreamError`; its own messages may name addresses."""
    try:
        yield
    except _NOT_REACHED as error:
        raise UpstreamError(f"{target.llm!r}: {type(error).__name__}", "connection") from None
    except (TimeoutError, httpx.TimeoutException):
        raise UpstreamError(f"{target.llm!r}: no answer within the time limit", "timeout") from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise UpstreamError(f"{target.llm!r}: {type(error).__name__}", "broken_off") from None


async def _read(response: httpx.Response, max_bytes: int, target: Target) -> bytes:
    content = bytearray()
    async for received in response.aiter_bytes():
        content += received
        if len(content) > max_bytes:
            raise _too_long(target, max_bytes)
    return bytes(content)


def _too_long(target: Target, max_bytes: int) -> UpstreamError:
    return UpstreamError(f"{target.llm!r}: an answer must have at most {max_bytes} bytes", "malformed")


def _json_object(content: bytes, target: Target) -> dict[str, Any]:
    try:
        value = orjson.loads(content)
        orjson.dumps(value)  # deeper nesting is read than written
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        value = None
    if not isinstance(value, dict):
        raise UpstreamError(f"{target.llm!r}: the answer is not a JSON object", "malformed")
    return value


def _has_choices(answer: Mapping[str, Any], part: str) -> bool:
    """Whether there is a list of choices, each with its message or delta."""
    choices = answer.get("choices")
    return isinstance(choices, list) and all(
        isinstance(choice, dict) and isinstance(choice.get(part), dict) for choice in choices
    )


def _says_too_long(error: Mapping[str, Any]) -> bool:
    """Whether an error says that the prompt does not fit into the context."""
    if not {error["code"], error["type"]}.isdisjoint(_TOO_LONG_CODES):
        return True
    return _TOO_LONG.search(error["message"]) is not None


def _error_of(content: bytes, target: Target) -> dict[str, Any]:
    """Fields of an error in OpenAI's form; those that are missing or no text are filled in."""
    try:
        error = orjson.loads(content)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        error = None
    given = error if isinstance(error, dict) else {}
    fields = {
        name: target.without_secret(value) if isinstance(value := given.get(name), str) else None
        for name in ("message", "type", "param", "code")
    }
    fields["message"] = fields["message"] or "the upstream refuses the request"
    fields["type"] = fields["type"] or "invalid_request_error"
    return fields
