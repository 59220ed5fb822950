"""Endpoints that are called with nothing of the framework in between."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from router.service.problems import problem_of, problem_response

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class PlainRoute(APIRoute):
    """Route of an endpoint that takes the request and gives a response, documented as any other.

    FastAPI solves dependencies and validates answers even where there is nothing to solve, which takes about
    as long as a decision.
    """

    def get_route_handler(self) -> Endpoint:
        """The endpoint itself."""
        return self.plain_endpoint

    @property
    def plain_endpoint(self) -> Endpoint:
        """What answers."""
        endpoint: Endpoint = self.endpoint
        return endpoint


class PlainRoutes:
    """ASGI middleware: takes requests to plain routes without parameters in their paths straight there.

    Looking for the route among all others, with what frameworks do on that way, takes about as long as a
    decision too. Errors are answered as everywhere.

    Parameters
    ----------
    app
        What answers all other requests.
    routes
        All routes, of which the plain ones are taken.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, PlainRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response = await route.plain_endpoint(request)
        except Exception as error:
            problem = problem_of(error)
            if problem is None:  # a defect, or of a middleware
                raise
            response = problem_response(scope["path"], problem)
        await response(scope, receive, send)
