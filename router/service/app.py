"""The HTTP application, built from its settings; opens nothing before it starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from router.encoders import EncoderIdentity
from router.service.chat_request import ChatBody
from router.service.limits import RequestLimits
from router.service.live import LiveRelease
from router.service.metrics import Metrics, RequestMetrics
from router.service.problems import Problem, add_problem_handlers, refusal
from router.service.routes import chat, operations, page, people, routing, telling
from router.service.routes.plain import PlainRoutes
from router.service.schemas import FeedbackRequest, LookalikeRequest, RecommendRequest, RouteRequest
from router.service.security import SECURITY_SCHEMES
from router.service.service import open_service
from router.service.settings import ServiceSettings
from router.service.store import Store
from router.service.upstreams import Upstreams

CHAT = "/v1/chat/completions"
_BODIES = (RouteRequest, RecommendRequest, LookalikeRequest, FeedbackRequest, ChatBody, Problem)
_DESCRIPTION = """\
Which LLM, and which items, suit a user: per request, from the latest published release, for users never seen
before too. Keys are made by `fairpath keys create`, each with scopes: `route` for decisions, recommendations
and chats, `read` for what is known of users, `feedback`, and `admin`. Errors are problem details (RFC 9457);
the OpenAI-compatible endpoints have OpenAI's form of errors.
"""


def create_app(
    settings: ServiceSettings,
    *,
    encoder: EncoderIdentity | None = None,
    store: Store | None = None,
    live: LiveRelease | None = None,
    upstreams: Upstreams | None = None,
) -> FastAPI:
    """Build the application.

    Parameters
    ----------
    settings
        All of its settings.
    encoder
        Of the releases that may be served; by default that of the current one at the start.
    store, live, upstreams
        Used instead of those that the settings name, and left open at the end.

    Returns
    -------
    FastAPI
        Its parts are opened when it starts: ``app.state.service``, a
        :class:`~router.service.service.Service`.
        A start fails with the errors of :func:`~router.service.service.open_service`.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_service(
            settings, metrics, encoder=encoder, store=store, live=live, upstreams=upstreams
        ) as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="Fairpath",
        version=version("fairpath"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's would run scripts of another site at this origin
        redoc_url=None,
    )
    parts = [
        routing.routes,
        people.plain_routes,
        people.routes,
        telling.routes,
        chat.routes,
        operations.routes,
    ]
    for part in parts:
        app.include_router(part)
    page.add_page(app)
    add_problem_handlers(app)
    app.add_middleware(PlainRoutes, [route for part in parts for route in part.routes])
    app.add_middleware(RequestLimits, settings.limits, refusal, untimed={CHAT})
    app.add_middleware(RequestMetrics, metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's, with the bodies that endpoints read themselves."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, bodies = models_json_schema(
            [(model, "validation") for model in _BODIES], ref_template="#/components/schemas/{model}"
        )
        components = schema.setdefault("components", {})
        components["schemas"] = dict(sorted((components.get("schemas", {}) | bodies["$defs"]).items()))
        components["securitySchemes"] = SECURITY_SCHEMES
        app.openapi_schema = schema
    return app.openapi_schema
