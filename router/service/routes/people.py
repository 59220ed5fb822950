"""Items for a user, users like others, and what is believed of one."""

from __future__ import annotations

from functools import partial
from typing import Annotated
from urllib.parse import quote, unquote

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from router.service.problems import ProblemError, documented
from router.service.profile import Profile
from router.service.routes.bodies import answer, parsed, service_of, with_body
from router.service.routes.plain import PlainRoute
from router.service.schemas import (
    ErasedAnswer,
    LookalikeAnswer,
    LookalikeRequest,
    Name,
    RecommendAnswer,
    RecommendRequest,
)
from router.service.security import SECURITY, check_items, require
from router.service.store import ApiKey

_ERASING_S = 2.0  # longer deletions are gone on with after the answer
_USERS = b"/v1/users/"

plain_routes = APIRouter(tags=["users and items"], route_class=PlainRoute)
routes = APIRouter(tags=["users and items"])


@plain_routes.post(
    "/v1/recommend",
    response_model=RecommendAnswer,
    responses=documented(401, 403, 404, 408, 410, 413, 415, 422, 429, 503, 504),
    openapi_extra=with_body(RecommendRequest),
)
async def recommend(request: Request) -> Response:
    """Items for a user, or for whoever has some items; the most frequent ones where neither is known.

    What a list leaves out tells what its user has. For a named user the scope 'read' is therefore needed as
    well where 'exclude_seen' is false or 'allowed' is given, and where 'k' and 'exclude' are more than 100
    together.
    """
    service = service_of(request)
    key = await service.gate.admit(request, ("route",))
    wanted = await parsed(request, RecommendRequest)
    probing = not wanted.exclude_seen or wanted.allowed is not None
    check_items(key, wanted.user, wanted.k + len(wanted.exclude), probing=probing)
    service.erasures.check(wanted.user)
    serving = service.live.serving
    interactions = await service.beliefs.items(serving, wanted.user, wanted.interactions)
    ranked = partial(
        serving.recommend,
        wanted.user,
        interactions,
        wanted.k,
        exclude=wanted.exclude,
        allowed=wanted.allowed,
        exclude_seen=wanted.exclude_seen,
    )
    plain = wanted.exclude_seen and wanted.allowed is None and not (interactions or wanted.exclude)
    with service.metrics.stage("recommend"):
        # A list that is there is read sooner than a thread is changed.
        found = serving.listed(wanted.user, wanted.k) if plain else None
        if found is None:
            found = await to_thread.run_sync(ranked)
    return answer(
        {
            "release": serving.version,
            "known_user": wanted.user is not None and serving.knows(wanted.user),
            "items": [{"item": item, "score": score} for item, score in found],
        }
    )


@plain_routes.post(
    "/v1/lookalike",
    response_model=LookalikeAnswer,
    responses=documented(401, 403, 404, 408, 410, 413, 415, 422, 429, 503, 504),
    openapi_extra=with_body(LookalikeRequest),
)
async def lookalike(request: Request) -> Response:
    """Users nearest to a set of users, by the personalised PageRank of their fingerprints."""
    service = service_of(request)
    await service.gate.admit(request, ("read",))
    wanted = await parsed(request, LookalikeRequest)
    service.erasures.check(*wanted.users)
    serving = service.live.serving
    nearest = partial(serving.lookalike, wanted.users, wanted.k, exclude_given=wanted.exclude_given)
    with service.metrics.stage("lookalike"):
        found = await to_thread.run_sync(nearest)
    return answer(
        {"release": serving.version, "users": [{"user": user, "score": score} for user, score in found]}
    )


@routes.get(
    "/v1/users/{user:path}/profile",
    response_model=Profile,
    responses=documented(401, 403, 404, 410, 422, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def profile(
    request: Request,
    user: Annotated[Name, Path(examples=["ana"])],
    key: Annotated[ApiKey | None, Depends(require("read"))],
) -> Response:
    """What is believed of a user, readable, with its evidence; 404 where nothing is known of one."""
    service = service_of(request)
    service.erasures.check(user)
    serving = service.live.serving
    belief = await service.beliefs.of(serving, user)
    if not belief.in_release and belief.source == "population":
        raise ProblemError(404, f"unknown user {user[:60]!r}: neither the release nor feedback names one")
    return answer(await to_thread.run_sync(serving.profile, user, belief))


@routes.delete(
    "/v1/users/{user:path}",
    response_model=ErasedAnswer,
    responses=documented(401, 403, 404, 422, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def erase(
    request: Request,
    user: Annotated[Name, Path(examples=["ana"])],
    key: Annotated[ApiKey | None, Depends(require("admin"))],
) -> Response:
    """Forget a user who asked for it: delete all that the store has of one, and refuse the user from now on.

    This worker refuses at once, the others within a second: whatever names the user is answered with 410, and
    the user is in nobody else's answers. 'fairpath users readmit' takes the user again, as one who is new.

    A '/' in the user's key must be sent as '%2F': a path with more parts names nobody (404).
    """
    service = service_of(request)
    _check_one_part(request)
    erased = await service.store.writing(service.store.erase_user, user, wait_s=_ERASING_S)
    await service.erasures.refresh()
    in_release = service.live.serving.holds(user)
    return answer(
        {
            "requested_at": erased.erasure.requested_at,
            "known": erased.again or in_release or any(erased.rows.values()),
            "deleted": erased.rows,
            "in_release": in_release,
            "swept": erased.swept,
        }
    )


def _check_one_part(request: Request) -> None:
    """Refuse a path of which it is not certain whom it names: what is erased does not come back."""
    sent: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    name = sent.partition(b"?")[0].partition(_USERS)[2]
    try:
        unquote(name.decode(), errors="strict")
    except UnicodeDecodeError:
        raise ProblemError(422, "the user's key in the path must be UTF-8") from None
    if b"/" in name:
        raise ProblemError(
            404, "a path with more parts names no user; a '/' in a user's key is sent as '%2F'"
        )
