"""Who may do what: API keys, their scopes, and rate limits.

A key is sent as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``. Keys that were found are remembered for
a second, so that a request costs no look-up and a revoked key is refused a second later. A key in use is
looked up again before the second is over, while requests go on: else all of them would wait, each second.

While a service needs no key, its only protection is that this machine alone reaches it, which any page in a
browser on this machine does too. So requests without a key must be of this machine by their ``Host`` (a name
that another's DNS points here is not) and, by ``Origin`` and ``Sec-Fetch-Site``, of no other site's page.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from anyio import to_thread
from cachetools import LRUCache
from fastapi import Request

from router.service.problems import ProblemError
from router.service.settings import ServiceSettings, is_loopback
from router.service.store import TOKEN_PREFIX, ApiKey, FeedbackStoreError, Scope, Store

_REMEMBERED_S, _FRESH_S = 1.0, 0.5
_REMEMBERED_KEYS = 10_000
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
MOST_WITHOUT_READ = 100
"""Longest list for a named user, together with what it excludes, that a key without ``read`` gets."""
_OWN_PAGES = (None, "same-origin", "none")


class Gate:
    """Admits requests.

    Parameters
    ----------
    settings
        Of the service.
    store
        Where keys and rates are.
    """

    def __init__(self, settings: ServiceSettings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._found: LRUCache[bytes, tuple[ApiKey | None, float]] = LRUCache(_REMEMBERED_KEYS)
        self._looking: dict[bytes, asyncio.Task[None]] = {}
        self._open_until = 0.0

    async def admit(self, request: Request, scopes: tuple[Scope, ...]) -> ApiKey | None:
        """The key of a request that one of the scopes admits; None where none is needed.

        Raises
        ------
        ProblemError
            401, 403 or 429.
        FeedbackStoreError
            The store cannot be read.
        """
        key = await self._key(_token(request))
        if key is None:
            if not await self._is_open():
                raise ProblemError(
                    401,
                    "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY",
                    headers=_CHALLENGE,
                )
            _check_local(request)
        elif key.scopes.isdisjoint(scopes):
            raise ProblemError(403, f"this API key does not have the scope {' or '.join(scopes)}")
        await self._take(request, key)
        return key

    async def _key(self, token: str) -> ApiKey | None:
        """Key of a token, None for none; 401 for one that is unknown, expired or revoked.

        Clients of other services always send some key: while none is needed, one that is not ours is ignored.
        """
        if not token or self._settings.auth == "off":
            return None
        digest = sha256(token.encode(errors="replace")).digest()
        key, found_at = self._found.get(digest, (None, -math.inf))
        age_s = time.monotonic() - found_at
        if age_s >= _REMEMBERED_S:
            key = await self._look_up(digest, token)
        elif age_s >= _FRESH_S and digest not in self._looking:
            self._looking[digest] = asyncio.create_task(self._look_again(digest, token))
        if key is None:
            if not token.startswith(TOKEN_PREFIX) and await self._is_open():
                return None
            raise ProblemError(401, "the API key is unknown, expired or revoked", headers=_CHALLENGE)
        return key

    async def _look_up(self, digest: bytes, token: str) -> ApiKey | None:
        """Key of a token as the store has it, which is remembered from the beginning of the look-up."""
        begin = time.monotonic()
        key = await to_thread.run_sync(self._store.find_key, token)
        self._found[digest] = key, begin
        return key

    async def _look_again(self, digest: bytes, token: str) -> None:
        try:
            await self._look_up(digest, token)
        except FeedbackStoreError:  # a request that has to wait for the key says so
            pass
        finally:
            del self._looking[digest]

    async def _is_open(self) -> bool:
        """Whether requests need no key."""
        if self._settings.auth != "auto":
            return self._settings.auth == "off"
        if not is_loopback(self._settings.host):
            return False
        if time.monotonic() >= self._open_until:
            if await to_thread.run_sync(self._store.any_keys):
                return False
            self._open_until = time.monotonic() + _REMEMBERED_S
        return True

    async def _take(self, request: Request, key: ApiKey | None) -> None:
        """Count a request against its rate limit."""
        limit = key.requests_per_minute if key is not None else None
        limit = limit or self._settings.limits.requests_per_minute
        if limit is None:
            return
        address = request.client.host if request.client else "unknown"
        bucket = f"address:{address}" if key is None else f"key:{key.key_id}"
        taken = await self._store.writing(self._store.take, bucket, limit, time.time())
        if not taken.allowed:
            wait_s = max(1, math.ceil(taken.retry_after_s))
            raise ProblemError(
                429,
                f"at most {limit} requests per minute; try again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )


def check_items(key: ApiKey | None, user: str | None, n_items: int, *, probing: bool = False) -> None:
    """Refuse a list of items from which a key without ``read`` could tell a user's own.

    Parameters
    ----------
    key
        Of the request, or None.
    user
        Whose list it is, or None.
    n_items
        Its length, with what it excludes.
    probing
        Whether the request chooses the items that are told apart.

    Raises
    ------
    ProblemError
        403.
    """
    if user is None or key is None or "read" in key.scopes or not (probing or n_items > MOST_WITHOUT_READ):
        return
    raise ProblemError(
        403,
        "this API key does not have the scope read, which is needed for 'exclude_seen': false, 'allowed' and "
        f"more than {MOST_WITHOUT_READ} items for a user, excluded ones too: they show what the user has",
    )


def require(*scopes: Scope) -> Callable[[Request], Awaitable[ApiKey | None]]:
    """Dependency that admits requests with one of the scopes and gives their key; see :meth:`Gate.admit`."""

    async def admitted(request: Request) -> ApiKey | None:
        gate: Gate = request.app.state.service.gate
        return await gate.admit(request, scopes)

    return admitted


SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "an API key made by 'fairpath keys create'",
    },
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same key"},
}
SECURITY: dict[str, Any] = {"security": [{"bearer": []}, {"header": []}]}
"""What ``openapi_extra`` of an endpoint that needs a key holds."""


def _check_local(request: Request) -> None:
    """Refuse what a page of another site can make a browser on this machine ask."""
    host = request.headers.get("host", "")
    if not is_loopback(_hostname(host)):
        raise ProblemError(
            403,
            f"while no API key is needed, 'Host' must be an address of this machine (got {host[:60]!r}); "
            "make a key to be reached by other names",
        )
    origin = request.headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != host
    if foreign or request.headers.get("sec-fetch-site") not in _OWN_PAGES:
        raise ProblemError(403, "while no API key is needed, pages of other origins may not ask")


def _hostname(host: str) -> str:
    """Host of a header ``Host``, without its port; empty where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _token(request: Request) -> str:
    """Token of a request; empty where there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    return request.headers.get("x-api-key", "").strip()
