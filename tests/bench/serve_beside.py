"""``fairpath serve`` with what its benchmark needs beside it; takes the same arguments.

An endpoint that answers nothing, ``POST /empty``, and headers: how long a request took beside the encoding of
its text, from the first of the application's code to the beginning of the answer; and which worker answered.
"""

from __future__ import annotations

import os
import sys
import time
from contextvars import ContextVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs import cli, serve
from jobs.settings import LogSettings
from router.encoders import EncoderIdentity
from router.persona.data import Floats
from router.service.encoding import QueryEncoder
from router.service.settings import ServiceSettings

BESIDE_ENCODER = "x-beside-encoder-s"
WORKER = "x-worker"
_encoding_s: ContextVar[float] = ContextVar("encoding_s", default=0.0)


def make_app(settings: ServiceSettings, log: LogSettings, encoder: EncoderIdentity) -> ASGIApp:
    """The service's app, with an empty endpoint."""
    from fastapi import FastAPI

    app = _make_app(settings, log, encoder)
    assert isinstance(app, FastAPI)
    app.add_api_route("/empty", _empty, methods=["POST"], include_in_schema=False)
    app.add_middleware(_Timed)
    return app


async def _empty(request: Request) -> Response:
    return Response(b"{}", media_type="application/json")


class _Timed:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start_s = time.perf_counter()
        _encoding_s.set(0.0)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                beside_s = time.perf_counter() - start_s - _encoding_s.get()
                message["headers"] += [
                    (BESIDE_ENCODER.encode(), b"%.6f" % beside_s),
                    (WORKER.encode(), b"%d" % os.getpid()),
                ]
            await send(message)

        await self._app(scope, receive, told)


async def _encode(self: QueryEncoder, text: str) -> Floats:
    start_s = time.perf_counter()
    try:
        return await _encode_text(self, text)
    finally:
        _encoding_s.set(time.perf_counter() - start_s)


_make_app, serve.make_app = serve.make_app, make_app
_encode_text, QueryEncoder.encode = QueryEncoder.encode, _encode  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
