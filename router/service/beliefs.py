"""What is believed of users, kept in memory until their feedback changes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import structlog
from anyio import to_thread
from cachetools import LRUCache

from router.scorer import Event
from router.service.serving import Belief, Serving
from router.service.store import FeedbackStoreError, Store

_BITS = 23


class UserMarks:
    """Users of whom something is stored: never misses one, and rarely takes another for one.

    A Bloom filter with one hash (Bloom, "Space/time trade-offs in hash coding with allowable errors", 1970):
    a mebibyte, whatever the number of users. It spares the store nearly all questions about users without
    feedback, who are most of them.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_BITS - 3))

    def add(self, user: str) -> None:
        """Mark a user."""
        place = hash(user) & ((1 << _BITS) - 1)
        self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, user: str) -> bool:
        place = hash(user) & ((1 << _BITS) - 1)
        return bool(self._bits[place >> 3] & (1 << (place & 7)))


class Beliefs:
    """Cache of beliefs by user, for one release at a time.

    Feedback takes effect at :meth:`refresh`: that of this process at once, that of other workers when
    :meth:`follow` looks. To be used from one event loop.

    Parameters
    ----------
    store
        Where feedback is.
    entries
        Users kept; the least recently asked for goes first.
    poll_s
        How often other workers' feedback is looked for.
    """

    def __init__(self, store: Store, *, entries: int, poll_s: float = 0.2) -> None:
        self._store = store
        self._kept: LRUCache[str, tuple[str, Belief]] = LRUCache(entries)
        self._reading: dict[str, object] = {}
        self._marked = UserMarks()
        self._cursor = 0
        self._poll_s = poll_s

    async def of(
        self,
        serving: Serving,
        user: str | None,
        interactions: Mapping[str, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Belief:
        """What a release, the feedback so far and the request itself say of a user.

        Raises
        ------
        UnknownNameError, DataError
            As :meth:`Serving.belief` does, for interactions and attributes.
        FeedbackStoreError
            The store cannot be read.
        """
        if user is None and not interactions and not attributes:
            return serving.belief(None)
        if user is None or interactions or attributes:
            return await to_thread.run_sync(self._read, serving, user, interactions, attributes)
        kept = self._kept.get(user)
        if kept is not None and kept[0] == serving.version:
            return kept[1]
        if user not in self._marked and serving.knows(user):
            belief = serving.belief(user)  # a look-up: quicker than a change of threads
            self._kept[user] = serving.version, belief
            return belief
        reading = self._reading[user] = object()
        try:
            belief = await to_thread.run_sync(self._read, serving, user)
            if self._reading.get(user) is reading:  # no feedback came meanwhile
                self._kept[user] = serving.version, belief
            return belief
        finally:
            if self._reading.get(user) is reading:
                del self._reading[user]

    def forget(self, user: str) -> None:
        """Drop what is kept of a user whose feedback has changed."""
        self._marked.add(user)
        self._reading.pop(user, None)
        self._kept.pop(user, None)

    async def refresh(self) -> None:
        """Forget all users whose feedback has changed since the last time; the first time, all with any.

        Raises
        ------
        FeedbackStoreError
            The store cannot be read.
        """
        cursor, users = await to_thread.run_sync(self._store.users_changed_since, self._cursor)
        self._cursor = max(cursor, self._cursor)
        for user in users:
            self.forget(user)

    async def follow(self) -> None:
        """Forget users whose feedback other workers accept, until cancelled."""
        while True:
            await anyio.sleep(self._poll_s)
            try:
                await self.refresh()
            except FeedbackStoreError as error:  # requests say so, and so does /readyz
                structlog.get_logger().warning("cannot read the feedback store", reason=str(error))

    def _read(
        self,
        serving: Serving,
        user: str | None,
        interactions: Mapping[str, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Belief:
        events = self._events(serving, user) if user is not None and user in self._marked else []
        return serving.belief(user, events, interactions, attributes)

    def _events(self, serving: Serving, user: str) -> list[Event]:
        """Choices of a user that are not in the release's own vectors."""
        since = serving.feedback_until if serving.knows(user) else None
        return [
            Event(found.llm, found.query_embedding, found.task, found.offered, found.query_key)
            for found in self._store.events_of(user)
            if since is None or found.at > since
        ]
