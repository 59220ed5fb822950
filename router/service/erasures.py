"""Users who asked to be forgotten, as one worker knows them: a look-up, never a question to the store.

The store refuses by itself whatever names one of them; here are the answers that need no store. Until a
release is published that has not seen a user, the one that serves may still hold it: it then answers as if it
did not, also of users who were readmitted since.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import anyio
import structlog
from anyio import to_thread

from router.erasure import Erasure, user_digest
from router.service.store import ErasedUserError, FeedbackStoreError, Store


class Erasures:
    """Erasures that this worker has heard of. Refreshed from one event loop, asked from any thread.

    Parameters
    ----------
    store
        Where they are recorded, by any worker or command.
    on_change
        Called with the digests of users who were erased or readmitted.
    poll_s
        How often those of others are looked for.
    """

    def __init__(
        self, store: Store, on_change: Callable[[Collection[str]], None], *, poll_s: float = 0.2
    ) -> None:
        self._store = store
        self._on_change = on_change
        self._poll_s = poll_s
        self._known: dict[str, Erasure] = {}
        self._cursor = 0

    def check(self, *users: str | None) -> None:
        """Refuse users who are erased.

        Raises
        ------
        ErasedUserError
            One of them is; does not say which, for it might be logged.
        """
        if not self._known:
            return
        for user in users:
            if user is not None and (found := self._known.get(user_digest(user))) and found.active:
                raise ErasedUserError

    def hides(self, user: str, erased_until: float | None) -> bool:
        """Whether a release must not tell that it knows a user.

        Parameters
        ----------
        user
            Key.
        erased_until
            Time of the last erasure that the release has heard of, or None.
        """
        if not self._known or (found := self._known.get(user_digest(user))) is None:
            return False
        return found.active or erased_until is None or found.requested_at > erased_until

    async def refresh(self) -> None:
        """Take in what has changed since the last time; the first time, all.

        Raises
        ------
        FeedbackStoreError
            The store cannot be read.
        """
        cursor, changed = await to_thread.run_sync(self._store.erasures_since, self._cursor)
        if changed:
            self._known.update({erasure.user_digest: erasure for erasure in changed})
            self._on_change({erasure.user_digest for erasure in changed})
            self._store.sweep_soon()  # whoever erased may have been killed
        self._cursor = max(cursor, self._cursor)

    async def follow(self) -> None:
        """Take in what others record, until cancelled."""
        while True:
            await anyio.sleep(self._poll_s)
            try:
                await self.refresh()
            except FeedbackStoreError as error:
                structlog.get_logger().warning("cannot read the feedback store", reason=str(error))
            except Exception:  # a defect: it is told, and must not end the service
                structlog.get_logger().exception("erasures could not be followed")
