"""The page that people look at: its files, and the users that it offers to look up.

The files hold nothing of a release and need no key; all that the page shows comes from endpoints that do. It
loads nothing from elsewhere and runs nothing inline, and its policy makes browsers hold it to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from router.bundle import USER
from router.service.problems import documented
from router.service.routes.bodies import answer, service_of
from router.service.security import SECURITY, require
from router.service.serving import Serving
from router.service.store import ApiKey

routes = APIRouter(tags=["users and items"])

_FOLDER = Path(__file__).parent.parent / "page"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Users(BaseModel):
    """Some users of a release, evenly spread over its table."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"release": "20261124T180000Z-3f2a9c1b7d60", "n_users": 4, "users": ["ana", "eva"]}
        },
    )

    release: str
    n_users: int = Field(description="users whom the release knows")
    users: list[str]


@routes.get(
    "/v1/users",
    response_model=Users,
    responses=documented(401, 403, 422, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def users(
    request: Request,
    key: Annotated[ApiKey | None, Depends(require("read"))],
    limit: Annotated[int, Query(ge=1, le=1000, description="most users in the answer")] = 20,
) -> Response:
    """Some users of the release, to look up: examples, not a search."""
    serving = service_of(request).live.serving
    return answer(await to_thread.run_sync(_some, serving, limit))


def _some(serving: Serving, limit: int) -> dict[str, object]:
    bundle = serving.scorer.bundle
    n_users = bundle.manifest["counts"].get(USER, 0)
    n_shown = min(limit, n_users)
    keys = bundle.keys(USER, np.arange(n_shown) * n_users // n_shown).tolist() if n_shown else []
    shown = [user for user in map(str, keys) if not serving.hides(user)]
    return {"release": serving.version, "n_users": n_users, "users": shown}


@routes.get("/", include_in_schema=False)
async def page() -> Response:
    """The page."""
    return FileResponse(_FOLDER / "index.html", headers=_HEADERS)


class _Files(StaticFiles):
    """The files beside the page, with its headers."""

    def file_response(self, *args: object, **options: object) -> Response:
        response = super().file_response(*args, **options)  # type: ignore[arg-type]
        response.headers.update(_HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page, its files, and the users that it offers."""
    app.include_router(routes)
    app.mount("/page", _Files(directory=_FOLDER))
