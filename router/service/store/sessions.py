"""Conversations, and the LLM that each is held with."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select

from router.service.store.database import insert
from router.service.store.records import Session
from router.service.store.tables import sessions

_FIND = select(sessions).where(sessions.c.session_id == bindparam("session_id"))


def find(connection: Connection, session_id: str) -> Session | None:
    """The session, or None."""
    row = connection.execute(_FIND, {"session_id": session_id}).first()
    if row is None:
        return None
    return Session(row.session_id, row.user_key, row.llm, row.decision_id, row.updated_at)


def keep(connection: Connection, session: Session) -> None:
    """Add or replace a session."""
    row = {
        "session_id": session.session_id,
        "user_key": session.user,
        "llm": session.llm,
        "decision_id": session.decision_id,
        "updated_at": session.updated_at,
    }
    query = insert(connection, sessions)
    changed = {name: query.excluded[name] for name in row if name != "session_id"}
    connection.execute(query.on_conflict_do_update(index_elements=["session_id"], set_=changed), row)
