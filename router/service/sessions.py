"""Conversations keep their LLM: which one each is held with, over all workers."""

from __future__ import annotations

import time

from anyio import to_thread

from router.service.settings import SessionSettings
from router.service.store import Store


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
