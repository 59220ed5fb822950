"""What is believed of users, kept in memory until their feedback changes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import anyio
import structlog
from anyio import to_thread
from cachetools import LRUCache

from router.erasure import user_digest
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


class _Known(NamedTuple):
    """A belief, and the items that feedback told since the release."""

    belief: Belief
    items: Mapping[str, float]


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
        self._kept: LRUCache[str, tuple[str, _Known]] = LRUCache(entries)
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
            return (await to_thread.run_sync(self._read, serving, user, interactions, attributes)).belief
        return (await self._known(serving, user)).belief

    async def items(
        self, serving: Serving, user: str | None, interactions: Mapping[str, float] | None
    ) -> Mapping[str, float] | None:
        """Items of a request, with those that feedback told of its user since the release.

        Raises
        ------
        FeedbackStoreError
            The store cannot be read.
        """
        if user is None or user not in self._marked:
            return interactions
        return {**(await self._known(serving, user)).items, **(interactions or {})}

    async def _known(self, serving: Serving, user: str) -> _Known:
        """What is kept of a user, read where it is not."""
        kept = self._kept.get(user)
        if kept is not None and kept[0] == serving.version:
            return kept[1]
        stored = serving.stored(user) if user not in self._marked else None
        if stored is not None:
            known = _Known(stored, {})  # a look-up: quicker than a change of threads
            self._kept[user] = serving.version, known
            return known
        reading = self._reading[user] = object()
        try:
            known = await to_thread.run_sync(self._read, serving, user)
            if self._reading.get(user) is reading:  # no feedback came meanwhile
                self._kept[user] = serving.version, known
            return known
        finally:
            if self._reading.get(user) is reading:
                del self._reading[user]

    def forget(self, user: str) -> None:
        """Drop what is kept of a user whose feedback has changed."""
        self._marked.add(user)
        self._reading.pop(user, None)
        self._kept.pop(user, None)

    def forget_erased(self, digests: Collection[str]) -> None:
        """Drop what is kept of users who were erased or readmitted."""
        for user in {*self._kept, *self._reading}:
            if user_digest(user) in digests:
                self.forget(user)

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
            except Exception:  # a defect: it is told, and must not end the service
                structlog.get_logger().exception("feedback of other workers could not be followed")

    def _read(
        self,
        serving: Serving,
        user: str | None,
        interactions: Mapping[str, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> _Known:
        if user is None or user not in self._marked:
            return _Known(serving.belief(user, (), interactions, attributes), {})
        since = serving.feedback_until if serving.knows(user) else None
        items = self._store.items_of(user, since)
        events = self._events(user, since)
        return _Known(serving.belief(user, events, {**items, **(interactions or {})}, attributes), items)

    def _events(self, user: str, since: float | None) -> list[Event]:
        """Choices of a user that are not in the release's own vectors.

        Those after a time; and, whenever they happened, those without a query, which no training reads.
        """
        return [
            Event(found.llm, found.query_embedding, found.task, found.offered, found.query_key)
            for found in self._store.events_of(user)
            if since is None or found.at > since or found.has_no_query
        ]
