"""Feedback, and the choices of users that follow from it.

Feedback may come late, twice, or in another order than things happened. What a decision came to is therefore
not what was received last, but what was judged last (``occurred_at``), so every order of arrival gives the
same choices.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, or_, select, text, update

from router.errors import ParameterError
from router.service.store import spending
from router.service.store.checks import check_name, check_number
from router.service.store.database import FEEDBACK_LOCK
from router.service.store.decisions import embedding_of, names_of
from router.service.store.errors import IdempotencyConflictError
from router.service.store.records import Accepted, DecisionRecord, Feedback, StoredEvent, new_id
from router.service.store.tables import decisions, feedback

_MOST_CHANGES = 10_000
_MOST_TIMES_EXPECTED = 100.0
_EVENTS = (
    select(
        feedback.c.decision_id,
        feedback.c.llm,
        feedback.c.verdict,
        feedback.c.at,
        decisions.c.task,
        decisions.c.offered,
        decisions.c.query_embedding,
        decisions.c.query_text,
        decisions.c.query_hash,
    )
    .select_from(feedback.outerjoin(decisions, feedback.c.decision_id == decisions.c.decision_id))
    .where(feedback.c.user_key == bindparam("user"), feedback.c.verdict != 0)
    .order_by(feedback.c.at.desc(), feedback.c.feedback_id.desc())
    .limit(bindparam("limit"))
)
_ITEMS = (
    select(feedback.c["items"])
    .where(feedback.c.user_key == bindparam("user"), feedback.c["items"].is_not(None))
    .where(feedback.c.at > bindparam("since"))
    .order_by(feedback.c.at.desc(), feedback.c.feedback_id.desc())
    .limit(bindparam("limit"))
)
_CHANGES = (
    select(
        feedback.c.position,
        feedback.c.user_key,
        or_(feedback.c.verdict != 0, feedback.c["items"].is_not(None)).label("tells"),
    )
    .where(feedback.c.position > bindparam("cursor"))
    .order_by(feedback.c.position)
    .limit(_MOST_CHANGES)
)


def check(given: Feedback, decision: DecisionRecord | None) -> None:
    """Refuse feedback that breaks a rule.

    Raises
    ------
    ParameterError
        It does; names the field.
    """
    for name in ("user", "llm"):
        check_name(name, getattr(given, name))
    if given.user is None and decision is None:
        raise ParameterError("'user' is needed where there is no 'decision_id'")
    if given.user is not None and decision is not None and decision.user not in (None, given.user):
        raise ParameterError(f"'user' must be the user of the decision (got {given.user[:60]!r})")
    if given.llm is None and decision is None and (given.thumbs is not None or given.score is not None):
        raise ParameterError("'llm' is needed for a judgement where there is no 'decision_id'")
    if given.thumbs not in (None, -1, 1):
        raise ParameterError(f"'thumbs' must be -1 or 1 (got {given.thumbs!r})")
    check_number("score", given.score, at_least=0.0, at_most=1.0)
    if given.thumbs is not None and given.score is not None and (given.thumbs > 0) != (given.score >= 0.5):
        raise ParameterError(f"'thumbs' and 'score' must agree (got {given.thumbs} and {given.score:g})")
    check_number("cost_usd", given.cost_usd, at_least=0.0)
    check_number("latency_ms", given.latency_ms, at_least=0.0)
    check_number("occurred_at", given.occurred_at)
    for item, weight in given.items:
        check_name("item", item)
        check_number("weight", weight, at_least=0.0)
        if weight == 0.0:
            raise ParameterError("'weight' must be positive (got 0)")


def take_turn(connection: Connection) -> None:
    """Let no other feedback be written, and no decision be pruned, before this transaction ends.

    So positions ascend in the order of commits, and an idempotency key or a decision is seen or not there.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": FEEDBACK_LOCK})


def add(
    connection: Connection,
    given: Feedback,
    decision: DecisionRecord | None,
    key_id: str | None,
    idempotency_key: str | None,
    now: float,
) -> Accepted:
    """Keep feedback once, and add its cost once to what was spent; in a transaction that took its turn."""
    same = asdict(given) | {"items": sorted(given.items)}  # in whatever order they were given
    body = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).digest()
    idempotency = None if idempotency_key is None else f"{key_id or ''}:{idempotency_key}"
    if idempotency is not None:
        found = connection.execute(
            select(feedback.c.feedback_id, feedback.c.body_sha256).where(
                feedback.c.idempotency == idempotency
            )
        ).first()
        if found is not None and found.body_sha256 != body:
            raise IdempotencyConflictError(
                f"the idempotency key was used before, for other feedback ({found.feedback_id})"
            )
        if found is not None:
            return Accepted(found.feedback_id, replayed=True)
    feedback_id = new_id()
    user = given.user or (None if decision is None else decision.user)
    row = {
        "feedback_id": feedback_id,
        "decision_id": given.decision_id,
        "user_key": user,
        "llm": given.llm or (None if decision is None else decision.llm),
        "verdict": given.verdict,
        "thumbs": given.thumbs,
        "score": given.score,
        "cost_usd": given.cost_usd,
        "latency_ms": given.latency_ms,
        "items": json.dumps(given.items) if given.items else None,
        "at": now if given.occurred_at is None else min(given.occurred_at, now),
        "received_at": now,
        "key_id": key_id,
        "idempotency": idempotency,
        "body_sha256": body,
    }
    connection.execute(insert(feedback), row)
    booked_usd = 0.0
    if decision is not None and given.cost_usd is not None and decision.endpoint != "chat":
        booked_usd = _charge(connection, decision, user, decision.key_id or key_id, given.cost_usd)
    return Accepted(feedback_id, replayed=False, booked_usd=booked_usd)


def _charge(
    connection: Connection, decision: DecisionRecord, user: str | None, key_id: str | None, usd: float
) -> float:
    """Add a reported cost, the first of its decision, to the day and the month of the decision.

    Returns what was added: not what is far beyond the expected cost, which is a slip of the unit or worse,
    and must not empty a budget.
    """
    first = connection.execute(
        update(decisions)
        .where(decisions.c.decision_id == decision.decision_id, decisions.c.charged.is_(False))
        .values(charged=True)
    )
    if first.rowcount != 1:
        return 0.0
    if decision.cost_usd is not None:
        usd = min(usd, _MOST_TIMES_EXPECTED * decision.cost_usd)
    subjects = [f"user:{user}"] * (user is not None) + [f"key:{key_id}"] * (key_id is not None)
    for period in (spending.period_of(decision.created_at, unit) for unit in ("day", "month")):
        spending.add(connection, subjects, period, usd)
    return usd


def events_of(connection: Connection, user: str, limit: int) -> list[StoredEvent]:
    """Choices among the last judgements of a user, oldest first."""
    rows = connection.execute(_EVENTS, {"user": user, "limit": limit}).all()
    judged: set[str] = set()
    events = []
    for row in rows:  # the last judgement of a decision comes first, and is the one that counts
        if row.decision_id is not None:
            if row.decision_id in judged:
                continue
            judged.add(row.decision_id)
        if row.verdict > 0:
            events.append(_event(row))
    return events[::-1]


def items_of(connection: Connection, user: str, since: float, limit: int) -> dict[str, float]:
    """Items that a user turned to after a time, with the sums of their weights."""
    found: dict[str, float] = {}
    for stored in connection.scalars(_ITEMS, {"user": user, "since": since, "limit": limit}):
        for item, weight in json.loads(stored):
            found[item] = found.get(item, 0.0) + weight
    return found


def _event(row: Row[*tuple[Any, ...]]) -> StoredEvent:
    return StoredEvent(
        llm=row.llm,
        query_embedding=embedding_of(row.query_embedding),
        task=row.task,
        offered=offered_with(row.offered, row.llm),
        query_key=row.query_hash if row.query_text is None else row.query_text,
        at=row.at,
    )


def offered_with(stored: str | None, llm: str) -> tuple[str, ...] | None:
    """What could be chosen from, with what was chosen: the user may have gone elsewhere; None if unknown."""
    names = names_of(stored) if stored else ()
    if not names:
        return None
    return names if llm in names else (*names, llm)


def users_changed_since(connection: Connection, cursor: int) -> tuple[int, list[str]]:
    """The next cursor, and the users of whom choices or items were told up to it, each once."""
    rows = connection.execute(_CHANGES, {"cursor": cursor}).all()
    users = dict.fromkeys(row.user_key for row in rows if row.tells and row.user_key is not None)
    return (rows[-1].position if rows else cursor), list(users)
