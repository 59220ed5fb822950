"""The status page as a Starlette application, and the thread that serves it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from jobs.fairqueue.server import metrics
from jobs.fairqueue.server.auth import TokenRequired
from jobs.fairqueue.server.page import StatusPage
from jobs.fairqueue.server.status import Application, Queue, read_status

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def create_app(
    application: Application, queue: Queue, *, token: str | None, history_s: float = 300, refresh_s: int = 5
) -> Starlette:
    """Application that shows ``queue``.

    ======================  ==========================================================
    path                    answer
    ======================  ==========================================================
    ``/``                   the status page
    ``/status.json``        the same as JSON
    ``/metrics``            Prometheus
    ``/healthz``            ``ok``; the only one that needs no token
    ======================  ==========================================================

    Parameters
    ----------
    application
        What does not change while it runs.
    queue
        Installed fair queue.
    token
        Token that requests must show; None lets everybody in.
    history_s
        Seconds shown in the picture of the slots.
    refresh_s
        Seconds after which a browser asks again.
    """
    page = StatusPage(history_s=history_s, refresh_s=refresh_s)
    registry = metrics.registry(queue)

    # Plain functions, which Starlette runs on threads: a wait for the queue's lock delays no other request.
    def show_page(_: Request) -> Response:
        return HTMLResponse(page.render(read_status(application, queue, history_s)), headers=_HEADERS)

    def show_json(_: Request) -> Response:
        return JSONResponse(read_status(application, queue, history_s).to_json(), headers=_HEADERS)

    def show_metrics(_: Request) -> Response:
        return Response(metrics.render(registry), headers={**_HEADERS, "Content-Type": metrics.CONTENT_TYPE})

    def show_health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    return Starlette(
        routes=[
            Route("/", show_page),
            Route("/status.json", show_json),
            Route("/metrics", show_metrics),
            Route("/healthz", show_health),
        ],
        middleware=[Middleware(TokenRequired, token=token)],
    )


@contextlib.contextmanager
def status_page(app: Starlette, listening: socket.socket) -> Iterator[str]:
    """Serve the status page on a thread; gives its URL."""
    # No access log: it is of no use here, and shows who looked.
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off")
    )
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listening]}, name="status-page", daemon=True
    )
    thread.start()
    try:
        host, port = listening.getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=5)
