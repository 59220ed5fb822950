"""How endpoints read bodies and write answers: without a framework's detours, and documented all the same."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from router.service.problems import ProblemError
from router.service.security import SECURITY
from router.service.service import Service

Body = TypeVar("Body", bound=BaseModel)


async def json_of(request: Request) -> bytes:
    """Body of a request, which must say that it is JSON: pages of other sites cannot send that unasked.

    Raises
    ------
    ProblemError
        415: it says something else, or nothing.
    """
    said = request.headers.get("content-type", "")
    if said.partition(";")[0].strip().lower() != "application/json":
        raise ProblemError(415, f"'Content-Type' must be application/json (got {said[:60]!r})")
    parts = []
    while True:  # as request.body() does, which is a generator within a generator
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def parsed(request: Request, model: type[Body]) -> Body:
    """Body of a request, validated straight from its bytes.

    Raises
    ------
    ProblemError
        415: its type is not application/json.
    pydantic.ValidationError
        It is not JSON, or breaks a rule.
    """
    return model.model_validate_json(await json_of(request))


def answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer as JSON; NaN becomes null."""
    written = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(written, status, headers, "application/json")


def with_body(model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of an endpoint that needs a key and reads a body; the app adds the model's schema."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        **SECURITY,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
    }


def service_of(request: Request) -> Service:
    """The service that a request is answered by."""
    service: Service = request.app.state.service
    return service
