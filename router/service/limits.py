"""Limits of requests: size and time. Rates are held at the gate (``security``), money in ``budgets``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.service.settings import LimitSettings

Refusal = Callable[[Scope, int, str], ASGIApp]
"""From scope, status and detail to an app that answers with that problem."""


class TooLargeError(Exception):
    """The body of a request is larger than allowed."""


class RequestLimits:
    """ASGI middleware: refuses bodies that are too large and ends requests that take too long.

    Parameters
    ----------
    app
        What answers.
    limits
        The limits.
    refusal
        How to refuse.
    untimed
        Paths whose requests have time limits of their own, once their body is there.
    """

    def __init__(
        self, app: ASGIApp, limits: LimitSettings, refusal: Refusal, untimed: Collection[str] = ()
    ) -> None:
        self._app = app
        self._limits = limits
        self._refusal = refusal
        self._untimed = frozenset(untimed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request within its limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = reading = False
        untimed = scope["path"] in self._untimed
        counted = self._counted(receive)

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def timed() -> Message:
            nonlocal reading
            reading = True
            message = await counted()
            reading = False
            if untimed and not message.get("more_body"):
                limit.reschedule(None)
            return message

        try:
            if _declared_bytes(scope) > self._limits.max_body_bytes:
                raise TooLargeError
            async with asyncio.timeout(self._limits.timeout_s) as limit:
                await self._app(scope, timed, watched)
        except TooLargeError:
            if started:
                raise
            detail = f"the body must have at most {self._limits.max_body_bytes} bytes"
            await self._refusal(scope, 413, detail)(scope, receive, send)
        except TimeoutError:
            if started:
                raise
            status, what = (408, "the body was not there") if reading else (504, "not answered")
            detail = f"{what} within {self._limits.timeout_s:g} s"
            await self._refusal(scope, status, detail)(scope, receive, send)

    def _counted(self, receive: Receive) -> Receive:
        """``receive``, which stops where the parts of a body are too large together."""
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._limits.max_body_bytes:
                raise TooLargeError
            return message

        return counted


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
