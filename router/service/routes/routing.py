"""``POST /v1/route``: which LLM, why, and perhaps which items."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import orjson
from anyio import to_thread
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from router.errors import ParameterError
from router.persona.data import Floats
from router.service.desk import Ask, Routed
from router.service.problems import documented
from router.service.routes.bodies import answer, json_of, service_of, with_body
from router.service.routes.plain import PlainRoute
from router.service.schemas import MAX_NUMBERS, RouteAnswer, RouteRequest
from router.service.security import check_items
from router.service.serving import Belief, Ranked
from router.service.sessions import session_id

_LARGEST = 1e9
_BOTH = "'embedding' and 'embedding_base64' must not be given together"

routes = APIRouter(tags=["decisions"], route_class=PlainRoute)


@routes.post(
    "/v1/route",
    response_model=RouteAnswer,
    responses=documented(401, 402, 403, 404, 408, 410, 413, 415, 422, 429, 503, 504),
    openapi_extra=with_body(RouteRequest),
)
async def route(request: Request) -> Response:
    """Choose the LLM that suits a user and a query, with fallbacks and reasons."""
    service = service_of(request)
    # Not as a dependency: FastAPI takes longer to solve one than the decision takes.
    key = await service.gate.admit(request, ("route",))
    wanted, embedding = _read(await json_of(request))
    _check_text(wanted.query, service.settings.limits.max_text_chars)
    check_items(key, wanted.user, wanted.items)
    session = None
    if wanted.session_id is not None:
        session = session_id(None if key is None else key.key_id, wanted.user, wanted.session_id)
    session_llm = None if session is None else await service.sessions.llm(session)
    routed = await service.desk.route(_ask(wanted, embedding, session, session_llm), key)
    if session is not None:
        await service.sessions.keep(session, wanted.user, routed.decision.llm, routed.decision_id)
    items = None
    if wanted.items:
        interactions = await service.beliefs.items(routed.serving, wanted.user, wanted.interactions)
        items = await to_thread.run_sync(routed.serving.recommend, wanted.user, interactions, wanted.items)
    return answer(_shown(routed, wanted.session_id, items))


def _check_text(text: str | None, max_chars: int) -> None:
    if text is not None and len(text) > max_chars:
        raise ParameterError(f"'query' must have at most {max_chars} characters (got {len(text)})")


def _ask(wanted: RouteRequest, embedding: Floats | None, session: str | None, session_llm: str | None) -> Ask:
    demands = wanted.constraints
    return Ask(
        user=wanted.user,
        text=wanted.query,
        embedding=embedding,
        task=wanted.task,
        allowed=None if wanted.candidates is None else frozenset(wanted.candidates),
        excluded=frozenset(wanted.exclude),
        capabilities=frozenset(demands.capabilities),
        prompt_tokens=demands.prompt_tokens,
        answer_tokens=demands.answer_tokens,
        budget_usd=demands.max_cost_usd,
        max_latency_ms=demands.max_latency_ms,
        interactions=wanted.interactions,
        attributes=wanted.attributes,
        session_llm=session_llm,
        session_id=session,
    )


def _read(body: bytes) -> tuple[RouteRequest, Floats | None]:
    """The question of a request, and its vector.

    A usual vector is taken as numbers, in a fraction of the time; whatever is not usual is judged as all
    fields are.

    Raises
    ------
    pydantic.ValidationError, ParameterError
        It is not JSON, or breaks a rule.
    """
    try:
        fields = orjson.loads(body)
        numbers = fields.pop("embedding")
        vector = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers))
        usual = isinstance(numbers, list) and 0 < len(numbers) <= MAX_NUMBERS
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError, struct.error):
        usual = False
    if not usual or not np.abs(vector).max() <= _LARGEST:
        wanted = RouteRequest.model_validate_json(body)
        return wanted, _embedding(wanted)
    wanted = RouteRequest.model_validate(fields)
    if wanted.embedding_base64 is not None:
        raise ParameterError(_BOTH)
    return wanted, vector.astype(np.float32)


def _embedding(wanted: RouteRequest) -> Floats | None:
    if wanted.embedding_base64 is None:
        return None if wanted.embedding is None else _vector("embedding", np.array(wanted.embedding))
    if wanted.embedding is not None:
        raise ParameterError(_BOTH)
    try:
        numbers = np.frombuffer(base64.b64decode(wanted.embedding_base64, validate=True), dtype="<f4")
    except ValueError:
        raise ParameterError("'embedding_base64' must be base64 of little-endian float32 numbers") from None
    return _vector("embedding_base64", numbers)


def _vector(name: str, numbers: NDArray[np.floating]) -> Floats:
    largest = np.abs(numbers).max(initial=0.0)
    if not largest <= _LARGEST:  # squares and sums of such numbers are finite in float32
        raise ParameterError(f"{name!r} must hold numbers of at most {_LARGEST:g} (got {largest:g})")
    vector: Floats = numbers.astype(np.float32)
    return vector


def _shown(routed: Routed, session: str | None, items: Ranked | None) -> dict[str, Any]:
    """The answer, of the form of :class:`RouteAnswer`."""
    decision, scores = routed.decision, routed.scores
    return {
        "decision_id": routed.decision_id,
        "release": routed.release,
        "chosen": decision.llm,
        "fallbacks": decision.fallback_llms,
        "why": decision.reason(),
        "models": _models(routed),
        "left_out": decision.left_out(),
        "based_on": based_on(routed.belief),
        "task": scores.task,
        "task_source": scores.task_source,
        "items": None if items is None else [{"item": item, "score": score} for item, score in items],
        "session": None if session is None else {"session_id": session, "kept": decision.kept},
        "budget": {"user_left_usd": routed.left.user_usd, "key_left_usd": routed.left.key_usd},
    }


def _models(routed: Routed) -> list[dict[str, Any]]:
    """The candidates, best first."""
    decision, scores = routed.decision, routed.scores
    order, names = decision.ranking, decision.catalogue.names
    columns = (
        decision.chances,
        decision.scores,
        scores.sd,
        scores.quality,
        decision.cost_usd,
        scores.latency_ms,
        decision.propensities,
    )
    rows = zip([names[i] for i in order.tolist()], *(column[order].tolist() for column in columns))
    return [
        {
            "llm": llm,
            "preference": preference,
            "score": score,
            "sd": sd,
            "quality": quality,
            "cost_usd": cost_usd,
            "latency_ms": latency_ms,
            "propensity": propensity,
        }
        for llm, preference, score, sd, quality, cost_usd, latency_ms, propensity in rows
    ]


def based_on(belief: Belief) -> dict[str, Any]:
    """What a belief rests on, of the form of :class:`~router.service.schemas.BasedOn`."""
    return {
        "source": belief.source,
        "n_events": belief.n_events,
        "in_release": belief.in_release,
        "unknown_items": belief.unknown_items,
    }
