"""Conversations keep their LLM: which one each is held with, over all workers."""

from __future__ import annotations

import hashlib
import time

import orjson
from anyio import to_thread

from router.service.settings import SessionSettings
from router.service.store import Store


def session_id(key_id: str | None, user: str | None, name: str) -> str:
    """Identity of a conversation that its caller calls by a name, which no other key or user shares."""
    return hashlib.sha256(orjson.dumps([key_id, user, name])).hexdigest()[:32]


class Sessions:
    """The LLMs of conversations.

    Parameters
    ----------
    settings
        How long a conversation is remembered.
    store
        Where all workers keep them.
    """

    def __init__(self, settings: SessionSettings, store: Store) -> None:
        self._ttl_s = settings.ttl_s
        self._store = store

    async def llm(self, session_id: str) -> str | None:
        """LLM that a conversation is held with; None for a new or a forgotten one."""
        session = await to_thread.run_sync(self._store.session, session_id)
        if session is None or session.updated_at < time.time() - self._ttl_s:
            return None
        return session.llm

    async def keep(self, session_id: str, user: str | None, llm: str, decision_id: str) -> None:
        """Remember who answered last."""
        await self._store.writing(self._store.keep_session, session_id, user, llm, decision_id, time.time())
