"""Limits of requests: size, time, rate and money."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from anyio import to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.service.metrics import Metrics
from router.service.settings import BudgetSettings, LimitSettings
from router.service.store import ApiKey, Store, period_of

Refusal = Callable[[Scope, int, str], ASGIApp]
"""From scope, status and detail to an app that answers with that problem."""


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


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


class RequestMetrics:
    """ASGI middleware: counts and times the answers, by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "none")  # the path itself may hold a user's id
            method = scope["method"] if scope["method"] in _METHODS else "other"
            method = method if route != "none" else "any"
            self._metrics.request(method, route, status, time.perf_counter() - start_s)


class Left(NamedTuple):
    """What a user and a key have left to spend in USD, None where they have no budget."""

    user_usd: float | None
    key_usd: float | None


class Budgets:
    """Budgets of users and API keys, per period.

    Parameters
    ----------
    settings
        The budgets.
    store
        Where all workers write what was spent.
    """

    def __init__(self, settings: BudgetSettings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def period(self, now: float) -> str:
        """Name of the period that a time is in, such as ``2026-11``."""
        return period_of(now, self._settings.period)

    def subjects(self, user: str | None, key: ApiKey | None) -> dict[str, float | None]:
        """Who pays, with the budget in USD of each, or None.

        A key pays for itself even without a budget, so that one that it is given later holds from the start
        of the period.
        """
        paying: dict[str, float | None] = {}
        if user is not None:
            paying[f"user:{user}"] = self._settings.user_usd
        if key is not None:
            paying[f"key:{key.key_id}"] = key.budget_usd
        return paying

    async def left(self, user: str | None, key: ApiKey | None, now: float) -> Left:
        """What is left; the store is asked only where there is a budget."""
        budgets: Mapping[str, float] = {
            subject: budget for subject, budget in self.subjects(user, key).items() if budget is not None
        }
        if not budgets:
            return Left(None, None)
        spent = await to_thread.run_sync(self._store.spent_usd, list(budgets), self.period(now))
        left: dict[str, Any] = {name: budget - spent.get(name, 0.0) for name, budget in budgets.items()}
        return Left(left.get(f"user:{user}"), left.get(f"key:{key.key_id}") if key is not None else None)
