"""What operators and machines ask: health, metrics, releases, and switching between them."""

from __future__ import annotations

from typing import Annotated

import structlog
from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from router import releases as on_disk
from router.errors import ReleaseError
from router.releases import places
from router.service.metrics import CONTENT_TYPE
from router.service.problems import documented
from router.service.routes.bodies import answer, service_of
from router.service.schemas import Health, Readiness, Releases, Switched
from router.service.security import SECURITY, require
from router.service.service import Service
from router.service.store import ApiKey, FeedbackStoreError

routes = APIRouter(tags=["operations"])


@routes.get("/healthz", response_model=Health)
async def healthz() -> Response:
    """The process lives."""
    return answer({"status": "ok"})


@routes.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Something is missing"}, **documented(504)},
)
async def readyz(request: Request) -> Response:
    """Whether requests can be answered: a release is open, the store answers, and texts can be encoded."""
    service = service_of(request)
    reasons = await _missing(service)
    content = {"ready": not reasons, "release": service.live.status()["version"], "reasons": reasons}
    return answer(content, 503 if reasons else 200)


@routes.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "Prometheus' text form",
        },
        **documented(401, 403, 429, 503, 504),
    },
    openapi_extra=SECURITY,
)
async def metrics(request: Request, key: Annotated[ApiKey | None, Depends(require("read"))]) -> Response:
    """Metrics of all workers for Prometheus; they name LLMs, never users."""
    rendered = await to_thread.run_sync(service_of(request).metrics.render)
    return Response(rendered, headers={"Content-Type": CONTENT_TYPE})


@routes.get(
    "/v1/releases",
    response_model=Releases,
    responses=documented(401, 403, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def releases(
    request: Request, key: Annotated[ApiKey | None, Depends(require("read", "admin"))]
) -> Response:
    """The releases on disk, which of them is served, and which was refused and why."""
    service = service_of(request)
    return answer(await to_thread.run_sync(_releases, service))


@routes.post(
    "/v1/admin/reload",
    response_model=Switched,
    responses=documented(401, 403, 409, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def reload(request: Request, key: Annotated[ApiKey | None, Depends(require("admin"))]) -> Response:
    """Look at CURRENT now; the other workers do within the poll time. 409 where the release is refused."""
    return answer({"release": await to_thread.run_sync(service_of(request).live.reload)})


@routes.post(
    "/v1/admin/rollback",
    response_model=Switched,
    responses=documented(401, 403, 409, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def rollback(request: Request, key: Annotated[ApiKey | None, Depends(require("admin"))]) -> Response:
    """Go back to the last release before that can be served. 409, and nothing changed, where none is."""
    return answer({"release": await to_thread.run_sync(service_of(request).live.rollback)})


async def _missing(service: Service) -> list[str]:
    reasons = []  # anyone may ask: without the names of files and databases, which the log has
    if service.live.status()["version"] is None:
        reasons.append("no release is open")
    if service.encoder is None and service.settings.encoder.kind != "none":
        reasons.append("no encoder is open")
    try:
        await to_thread.run_sync(service.store.any_keys)
    except FeedbackStoreError as error:
        structlog.get_logger().error("not ready", reason=str(error))
        reasons.append("the feedback store cannot be read")
    if service.store.problem is not None:
        structlog.get_logger().error("not ready", reason=service.store.problem)
        reasons.append("decisions cannot be written")
    return reasons


def _releases(service: Service) -> dict[str, object]:
    root, status = service.settings.releases, service.live.status()
    encoder = None if status["version"] is None else str(service.live.serving.scorer.encoder)
    try:
        current = on_disk.current_version(root)
        previous = next(iter(places.earlier_versions(places.Folder(root))), None)
    except ReleaseError:  # CURRENT holds no version; 'refused' says so
        current = previous = None
    return {
        "serving": status["version"],
        "current": current,
        "previous": previous,
        "versions": on_disk.versions(root),
        "encoder": encoder,
        "refused": status["refused"],
    }
