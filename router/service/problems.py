"""Errors as answers: RFC 9457 problem details, and OpenAI's form where OpenAI's clients ask.

Each class of errors has one status; :func:`problem_of` is the whole list. What is not on it is a defect: it
is logged and answered with 500, without its text. So is what only the operator can mend, with 503: such texts
name files, databases and other services.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from router.errors import (
    BudgetSpentError,
    BundleError,
    DataError,
    MissingDataError,
    NoCandidateError,
    NotInReleaseError,
    NotReadyError,
    ParameterError,
    ReleaseError,
    ResourceError,
    RouterError,
)
from router.service.store import (
    ErasedUserError,
    IdempotencyConflictError,
    StoreBusyError,
    UnknownDecisionError,
)

MEDIA_TYPE = "application/problem+json"
OPENAI_PATHS = ("/v1/chat", "/v1/models")
"""Beginnings of the paths whose errors have OpenAI's form."""

_TITLES = {
    400: "The request is malformed",
    401: "An API key is needed",
    402: "No LLM is within the budget of the user or the key",
    403: "The API key does not have the scope, or a page of another site asks",
    404: "There is no such thing",
    405: "The method is not allowed here",
    408: "The body took too long",
    409: "This conflicts with what is there",
    410: "The user was erased on request",
    413: "The request is too large",
    415: "The body is not JSON",
    422: "The request breaks a rule",
    429: "Too many requests",
    500: "The service has failed",
    503: "The service cannot answer now",
    504: "The answer took too long",
}
_OPENAI_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_OPENAI_CODES = {402: "budget_spent", 410: "user_erased"}
USER_ERASED = "urn:fairpath:user-erased"
"""Type of the problem of whoever names a user who was erased."""


class Problem(BaseModel):
    """An error, in the form of RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": "The request breaks a rule",
                "status": 422,
                "detail": "unknown LLM 'gpt-0'; the catalogue has small, large",
            }
        }
    )

    type: str = Field(default="about:blank", description=f"kind of problem; {USER_ERASED} has its own")
    title: str = Field(description="the status in words")
    status: int = Field(description="HTTP status")
    detail: str = Field(description="what is wrong here: place, rule and value")
    left_out: dict[str, list[str]] | None = Field(
        default=None, description="where no LLM fulfils the demands: the reasons against each"
    )
    errors: list[dict[str, Any]] | None = Field(default=None, description="fields that break a rule")


class ProblemError(Exception):
    """A problem with its status.

    Attributes
    ----------
    status, detail
        Of the answer.
    headers
        Further headers.
    fields
        Further fields of the problem.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})


def problem_of(error: Exception) -> ProblemError | None:
    """An error as a problem; None where it is a defect of this program."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, RequestValidationError | ValidationError):
        return _validation(error)
    if isinstance(error, HTTPException):
        return ProblemError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, NoCandidateError):
        status = 402 if isinstance(error, BudgetSpentError) else 422
        return ProblemError(status, str(error), fields={"left_out": error.left_out} if error.left_out else {})
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            if status != 503:
                return ProblemError(status, str(error))
            structlog.get_logger().error("cannot answer", reason=str(error))
            busy = isinstance(error, StoreBusyError)
            return ProblemError(503, _CANNOT_ANSWER, headers={"Retry-After": "1"} if busy else None)
    return None


_CANNOT_ANSWER = "the service cannot answer this now; its log says why. Try again later"


# The first that fits: some data is the operator's, not the request's.
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (UnknownDecisionError, 404),
    (ErasedUserError, 410),
    (IdempotencyConflictError, 409),
    (NotInReleaseError, 404),
    (ReleaseError, 409),
    (BundleError, 503),
    (MissingDataError, 503),
    (NotReadyError, 503),
    (ParameterError, 422),
    (DataError, 422),
    (ResourceError, 503),
)


def problem_response(path: str, problem: ProblemError) -> Response:
    """Answer to a request of a path that says what is wrong."""
    if path.startswith(OPENAI_PATHS):
        kind = _OPENAI_TYPES.get(
            problem.status, "invalid_request_error" if problem.status < 500 else "server_error"
        )
        error = {
            "message": problem.detail,
            "type": problem.fields.get("type", kind),
            "param": problem.fields.get("param"),
            "code": problem.fields.get("code", _OPENAI_CODES.get(problem.status)),
        }
        content = orjson.dumps({"error": error})
        return Response(content, problem.status, problem.headers, "application/json")
    body = {
        "type": USER_ERASED if problem.status == 410 else "about:blank",
        "title": _TITLES.get(problem.status, "Something is wrong"),
        "status": problem.status,
        "detail": problem.detail,
        **problem.fields,
    }
    return Response(orjson.dumps(body), problem.status, problem.headers, MEDIA_TYPE)


def add_problem_handlers(app: FastAPI) -> None:
    """Make an app answer its errors as problems."""

    async def answer(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem is None:
            # Its path may name a user, who may have been erased.
            route = getattr(request.scope.get("route"), "path", "none")
            structlog.get_logger().error("a request failed", route=route, exc_info=error)
            problem = ProblemError(500, "a defect of the service; its log says more")
        return problem_response(request.url.path, problem)

    kinds: list[type[Exception]] = [ProblemError, RequestValidationError, ValidationError, HTTPException]
    for kind in (*kinds, RouterError, Exception):
        app.add_exception_handler(kind, answer)


def refusal(scope: Mapping[str, Any], status: int, detail: str) -> Response:
    """Answer of a middleware that refuses a request."""
    return problem_response(scope["path"], ProblemError(status, detail))


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses of an endpoint, for its documentation."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": _TITLES[status], "content": content} for status in statuses}


def _validation(error: RequestValidationError | ValidationError) -> ProblemError:
    """Fields that break a rule, with place, rule and value; long values are cut."""
    found = error.errors() if isinstance(error, RequestValidationError) else error.errors(include_url=False)
    told = [
        {"place": ".".join(map(str, one["loc"])) or "body", "rule": _rule(one["msg"]), "value": _shown(one)}
        for one in found[:20]
    ]
    detail = "; ".join(f"{one['place']!r} {one['rule']} (got {one['value']})" for one in told[:3])
    return ProblemError(422, detail, fields={"errors": told})


def _rule(message: str) -> str:
    rule = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return rule[:1].lower() + rule[1:]


def _shown(one: Mapping[str, Any]) -> str:
    value = one.get("input")
    if isinstance(value, Mapping | list | tuple | bytes):
        return f"{type(value).__name__} of length {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
