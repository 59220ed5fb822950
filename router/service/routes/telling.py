"""``POST /v1/feedback``: what happened after a decision, or with a user."""

from __future__ import annotations

from typing import Annotated

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from router.service.metrics import Metrics
from router.service.problems import documented
from router.service.routes.bodies import answer, parsed, service_of, with_body
from router.service.schemas import FeedbackAnswer, FeedbackRequest
from router.service.security import require
from router.service.service import Service
from router.service.store import Accepted, ApiKey, Feedback, UnknownDecisionError

routes = APIRouter(tags=["feedback"])

_FIRST_WAIT_S = 0.05  # as long as decisions wait to be written together

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
        **documented(401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 503, 504),
    },
    openapi_extra=with_body(FeedbackRequest),
)
async def feedback(
    request: Request,
    key: Annotated[ApiKey | None, Depends(require("feedback"))],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Tell what happened; when this is answered, it is on the disk.

    Feedback on a decision that was made for an API key needs that key, or one with the scope admin: for any
    other there is no such decision.

    Choices change the user's next decision, as items do for a user whom the release does not know; items that
    the user turned to are no longer recommended.
    """
    service = service_of(request)
    told = await parsed(request, FeedbackRequest)
    if told.llm is not None:
        await _check_llm(service, told.llm, told.decision_id)
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
    with service.metrics.stage("feedback"):
        accepted = await _added(service, given, key, idempotency_key)
    content = {"feedback_id": accepted.feedback_id, "replayed": accepted.replayed}
    if accepted.replayed:
        return answer(content, 200, {"Idempotent-Replayed": "true"})
    _count(service.metrics, told, accepted.booked_usd)
    await service.beliefs.refresh()
    return answer(content, 201)


async def _added(
    service: Service, given: Feedback, key: ApiKey | None, idempotency_key: str | None
) -> Accepted:
    """Receipt of the store, which gets a moment to hear of a decision that another worker has just made."""
    store, wait_s = service.store, _FIRST_WAIT_S
    while True:
        try:
            return await store.writing(
                store.add_feedback,
                given,
                key_id=None if key is None else key.key_id,
                of_any_key=key is not None and "admin" in key.scopes,
                idempotency_key=idempotency_key,
            )
        except UnknownDecisionError:
            if given.decision_id is None or not store.may_be_on_its_way(given.decision_id):
                raise
        await anyio.sleep(wait_s)
        wait_s *= 2


async def _check_llm(service: Service, llm: str, decision_id: str | None) -> None:
    """Refuse an LLM that neither the release has nor the decision, which may be of an older one, offered."""
    catalogue = service.live.serving.catalogue
    if llm in catalogue.names:
        return
    decision = None if decision_id is None else await to_thread.run_sync(service.store.decision, decision_id)
    if decision is None or llm not in decision.offered:
        catalogue.position(llm)


def _count(metrics: Metrics, told: FeedbackRequest, booked_usd: float) -> None:
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
    metrics.reported(booked_usd)
