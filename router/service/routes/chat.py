"""``POST /v1/chat/completions`` and ``GET /v1/models``: what OpenAI's clients ask."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.types import Receive

from router.service.chat_request import ChatBody, ChatRequest
from router.service.chat_stream import ChatStreamResponse
from router.service.routes.bodies import answer, json_of, service_of, with_body
from router.service.security import SECURITY, require
from router.service.store import ApiKey

routes = APIRouter(tags=["OpenAI-compatible"])

_T = TypeVar("_T")
_CLIENT_CLOSED = 499  # as nginx says it; nobody reads this answer
_ERRORS = {
    400: "The upstream says that the request is wrong",
    401: "An API key is needed",
    402: "No LLM is within the budget of the user or the key",
    403: "The API key does not have the scope, or a page of another site asks",
    404: "There is no such model",
    408: "The body took too long",
    410: "The user was erased on request",
    413: "The request is too large",
    415: "The body is not JSON, or the upstream does not take it",
    422: "The request breaks a rule, or no LLM fulfils its demands",
    429: "Too many requests",
    502: "No LLM answered as it should",
    503: "The service cannot answer now",
    504: "No LLM answered in time",
}


class Decided(BaseModel):
    """What was decided for a chat."""

    decision_id: str = Field(description="what feedback refers to")
    release: str = Field(description="version of the release that decided")
    llm: str = Field(description="the LLM that answered")
    why: str = Field(description="why it, or the one that it stands in for, was chosen")
    based_on: str = Field(description="what the belief about the user rests on")
    kept_for_session: bool = Field(description="whether the conversation kept its LLM")
    failed: list[dict[str, str]] = Field(
        description="LLMs that were asked before and failed, with the reason"
    )


class ChatAnswer(BaseModel):
    """A chat completion as OpenAI's clients know it; further fields come from the upstream."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(default="", description="the LLM that answered")
    choices: list[dict[str, Any]]
    usage: dict[str, Any] | None = None
    fairpath: Decided | None = Field(default=None, description="only where the router chose")


class Model(BaseModel):
    """One model."""

    id: str
    object: str = "model"
    created: int = Field(default=0, description="not known here")
    owned_by: str = Field(description="its upstream; fairpath: the router chooses")


class Models(BaseModel):
    """All models."""

    object: str = "list"
    data: list[Model]


class OpenAIFields(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorAnswer(BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIFields


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": OpenAIErrorAnswer, "description": _ERRORS[status]} for status in statuses}


@routes.post(
    "/v1/chat/completions",
    responses={
        200: {
            "model": ChatAnswer,
            "description": "The answer; with 'stream', server-sent events with its chunks",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **_errors(400, 401, 402, 403, 404, 408, 410, 413, 415, 422, 429, 502, 503, 504),
    },
    openapi_extra=with_body(ChatBody),
)
async def chat_completions(
    request: Request, key: Annotated[ApiKey | None, Depends(require("route"))]
) -> Response:
    """Answer a chat by the LLM that suits the user, or by the one that is named.

    The model 'auto' leaves the choice to the router: the last message of the user is the query, 'user' says
    whose preferences decide, tools and images what the LLM must be able to do. An LLM that fails before its
    answer begins is replaced by the next candidate. A conversation keeps its LLM unless another is clearly
    better; the header X-Session-Id or metadata.session_id names it, else it is known by user and first
    message. Demands come in the body's 'fairpath' or in the headers X-Fairpath-Candidates, -Exclude and
    -Capabilities (names with commas between them), -Task, -Max-Cost-Usd and -Max-Latency-Ms. Headers of the
    answer: X-Fairpath-Model, -Decision-Id, -Release, and -Fallbacks, the LLMs that failed.
    """
    chat = service_of(request).chat
    asked = ChatRequest.parse(await json_of(request), request.headers)
    if asked.body.stream:
        stream = await _unless_gone(request.receive, chat.stream(asked, key))
        return Response(status_code=_CLIENT_CLOSED) if stream is None else ChatStreamResponse(stream)
    completed = await _unless_gone(request.receive, chat.complete(asked, key))
    return (
        Response(status_code=_CLIENT_CLOSED) if completed is None else answer(completed[0], 200, completed[1])
    )


@routes.get(
    "/v1/models",
    response_model=Models,
    responses=_errors(401, 403, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def models(request: Request, key: Annotated[ApiKey | None, Depends(require("route"))]) -> Response:
    """List the models that a chat may name."""
    return answer({"object": "list", "data": service_of(request).chat.models()})


@routes.get(
    "/v1/models/{model:path}",
    response_model=Model,
    responses=_errors(401, 403, 404, 422, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def model(
    request: Request, model: str, key: Annotated[ApiKey | None, Depends(require("route"))]
) -> Response:
    """Describe one model."""
    return answer(service_of(request).chat.model(model))


async def _unless_gone(receive: Receive, work: Awaitable[_T]) -> _T | None:
    """Result of ``work``, which is cancelled where the caller goes away: then None."""
    result, failure = None, None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            await _disconnected(receive)
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            result = await work
        except Exception as error:  # raised below, where no group wraps it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
