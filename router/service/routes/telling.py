"""``POST /v1/feedback``: what happened after a decision, or with a user."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from router.service.metrics import Metrics
from router.service.problems import documented
from router.service.routes.bodies import answer, parsed, service_of, with_body
from router.service.schemas import FeedbackAnswer, FeedbackRequest
from router.service.security import require
from router.service.store import ApiKey, Feedback

routes = APIRouter(tags=["feedback"])

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="name of this feedback among those of the API key; the same again is accepted once",
    ),
]


@routes.post(
    "/v1/feedback",
    status_code=201,
    response_model=FeedbackAnswer,
    responses={
        200: {
            "model": FeedbackAnswer,
            "description": "The same was accepted before under this idempotency key",
            "headers": {"Idempotent-Replayed": {"schema": {"type": "string", "enum": ["true"]}}},
        },
        **documented(401, 403, 404, 409, 413, 422, 429, 503, 504),
    },
    openapi_extra=with_body(FeedbackRequest),
)
async def feedback(
    request: Request,
    key: Annotated[ApiKey | None, Depends(require("feedback"))],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Tell what happened; when this is answered, it is on the disk and changes the user's next decision."""
    service = service_of(request)
    told = await parsed(request, FeedbackRequest)
    if told.llm is not None and told.decision_id is None:
        service.live.serving.catalogue.position(told.llm)
    given = Feedback(
        decision_id=told.decision_id,
        user=told.user,
        llm=told.llm,
        thumbs=told.thumbs,
        score=told.score,
        cost_usd=told.cost_usd,
        latency_ms=told.latency_ms,
        items=tuple(told.items.items()),
        occurred_at=told.occurred_at,
    )
    add = partial(
        service.store.add_feedback,
        given,
        key_id=None if key is None else key.key_id,
        idempotency_key=idempotency_key,
    )
    with service.metrics.stage("feedback"):
        accepted = await to_thread.run_sync(add)
    content = {"feedback_id": accepted.feedback_id, "replayed": accepted.replayed}
    if accepted.replayed:
        return answer(content, 200, {"Idempotent-Replayed": "true"})
    _count(service.metrics, told)
    await service.beliefs.refresh()
    return answer(content, 201)


def _count(metrics: Metrics, told: FeedbackRequest) -> None:
    kinds = {
        "choice": told.llm is not None and told.thumbs is None and told.score is None,
        "thumbs_up": told.thumbs == 1,
        "thumbs_down": told.thumbs == -1,
        "score": told.score is not None,
        "cost": told.cost_usd is not None,
        "latency": told.latency_ms is not None,
        "items": bool(told.items),
    }
    for kind, there in kinds.items():
        if there:
            metrics.feedback(kind)
    if told.cost_usd is not None:
        metrics.reported(told.cost_usd)
