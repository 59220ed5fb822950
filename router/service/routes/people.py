"""Items for a user, users like others, and what is believed of one."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from router.service.problems import ProblemError, documented
from router.service.profile import Profile
from router.service.routes.bodies import answer, parsed, service_of, with_body
from router.service.schemas import (
    LookalikeAnswer,
    LookalikeRequest,
    Name,
    RecommendAnswer,
    RecommendRequest,
)
from router.service.security import SECURITY, check_items, require
from router.service.store import ApiKey

routes = APIRouter(tags=["users and items"])


@routes.post(
    "/v1/recommend",
    response_model=RecommendAnswer,
    responses=documented(401, 403, 404, 408, 413, 415, 422, 429, 503, 504),
    openapi_extra=with_body(RecommendRequest),
)
async def recommend(request: Request) -> Response:
    """Items for a user, or for whoever has some items; the most frequent ones where neither is known.

    What a list leaves out tells what its user has. For a named user the scope 'read' is therefore needed as
    well where 'exclude_seen' is false or 'allowed' is given, and where 'k' and 'exclude' are more than 100
    together.
    """
    service = service_of(request)
    key = await service.gate.admit(request, ("route",))  # not as a dependency: see routing.py
    wanted = await parsed(request, RecommendRequest)
    probing = not wanted.exclude_seen or wanted.allowed is not None
    check_items(key, wanted.user, wanted.k + len(wanted.exclude), probing=probing)
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


@routes.post(
    "/v1/lookalike",
    response_model=LookalikeAnswer,
    responses=documented(401, 403, 404, 408, 413, 415, 422, 429, 503, 504),
    openapi_extra=with_body(LookalikeRequest),
)
async def lookalike(request: Request, key: Annotated[ApiKey | None, Depends(require("read"))]) -> Response:
    """Users nearest to a set of users, by the personalised PageRank of their fingerprints."""
    service = service_of(request)
    wanted = await parsed(request, LookalikeRequest)
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
    responses=documented(401, 403, 404, 422, 429, 503, 504),
    openapi_extra=SECURITY,
)
async def profile(
    request: Request,
    user: Annotated[Name, Path(examples=["ana"])],
    key: Annotated[ApiKey | None, Depends(require("read"))],
) -> Response:
    """What is believed of a user, readable, with its evidence; 404 where nothing is known of one."""
    service = service_of(request)
    serving = service.live.serving
    belief = await service.beliefs.of(serving, user)
    if not belief.in_release and belief.source == "population":
        raise ProblemError(404, f"unknown user {user[:60]!r}: neither the release nor feedback names one")
    return answer(await to_thread.run_sync(serving.profile, user, belief))
