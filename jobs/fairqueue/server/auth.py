"""The shared token: where it comes from, which addresses need it, and how an HTTP request shows it."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import re

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.errors import ConfigurationError
from jobs.settings import ServerSettings

TOKEN_VARIABLE = "SPARK_CONNECT_AUTHENTICATE_TOKEN"
"""Environment variable from which Spark Connect, and every PySpark client, takes the token."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,}")  # the characters of RFC 6750; longer than can be guessed
_OPEN_PATHS = frozenset({"/healthz"})


def shared_token(settings: ServerSettings) -> str | None:
    """Token of the settings, else that of Spark's environment variable, else None.

    Raises
    ------
    ConfigurationError
        The token is too short or cannot stand in a header.
    """
    token = settings.token.get_secret_value() if settings.token else os.environ.get(TOKEN_VARIABLE)
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConfigurationError("[server] 'token' must be at least 16 letters, digits or any of -._~+/=")
    return token


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ServerSettings, token: str | None) -> None:
    """Refuse to serve other machines without a token, unless that is asked for.

    Raises
    ------
    ConfigurationError
        An address beyond this machine, no token, and ``allow_unauthenticated`` is off.
    """
    if token is not None or settings.allow_unauthenticated:
        return
    for name in ("host", "status_host"):
        host = getattr(settings, name)
        if not is_loopback(host):
            raise ConfigurationError(
                f"[server] {name!r} must be localhost where there is no token (got {host!r}): set "
                "FAIRPATH_SERVER__TOKEN, or allow_unauthenticated = true to let everybody run code here"
            )


class TokenRequired:
    """ASGI middleware: requests must show the token, except for ``/healthz``.

    Programs send ``Authorization: Bearer TOKEN``; browsers ask for a password, which is the token, with any
    user name (HTTP Basic), so that it stands in no address, history or cookie.

    Parameters
    ----------
    app
        What answers admitted requests.
    token
        The shared token; None admits everybody.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and self._token is not None and scope["path"] not in _OPEN_PATHS:
            shown = _shown_token(Headers(scope=scope).get("authorization", ""))
            if not hmac.compare_digest(shown, self._token.encode()):
                app = PlainTextResponse(
                    "The token is missing or wrong: send it as 'Authorization: Bearer TOKEN', or as the "
                    "password of any user.\n",
                    status_code=401,
                    headers={"WWW-Authenticate": 'Basic realm="Fairpath: the password is the token"'},
                )
        await app(scope, receive, send)


def _shown_token(authorization: str) -> bytes:
    """Token of an ``Authorization`` header; empty where there is none."""
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value.encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""
