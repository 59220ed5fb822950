"""The store that all workers of the service share: one object with all that it is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import anyio
from anyio import to_thread
from sqlalchemy import Connection

from router.encoders import EncoderIdentity
from router.service.store import decisions, erasures, export, feedback, keys, rates, sessions, spending
from router.service.store.checks import check_name
from router.service.store.database import LONGEST_WAIT_S, Database
from router.service.store.errors import UnknownDecisionError
from router.service.store.pruning import Pruning
from router.service.store.records import (
    Accepted,
    ApiKey,
    DecisionRecord,
    Exported,
    Feedback,
    Session,
    StoredEvent,
    Taken,
    age_s,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")

_CLOSE_TIMEOUT_S = 10.0
_WRITING_THREADS = 10
# How long another worker may take to write its decision.
_OTHERS_WRITE_S = 0.5


class Store(Pruning):
    """API keys, decisions, feedback, sessions, spending, rate limits and erasures, shared by all workers.

    Safe to share between threads; each process opens its own, by :func:`open_store`. All methods but
    :meth:`add_decision` wait for the database, and raise :class:`FeedbackStoreError` where it fails. An event
    loop calls those that write by :meth:`writing`, so that they do not take the threads of those that read.

    Parameters
    ----------
    database
        Opened database.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._decisions = decisions.DecisionBuffer(database)
        self._rates = rates.RateLimits(database)
        self._writers = anyio.CapacityLimiter(_WRITING_THREADS)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def problem(self) -> str | None:
        """Why decisions cannot be written at present, or None."""
        problem = self._decisions.problem
        return None if problem is None else str(problem)

    async def writing(self, method: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Result of a method that writes, called in one of a few threads that are kept for this.

        Raises
        ------
        StoreBusyError
            No thread was free, or the database was not, for too long: nothing was written.
        """
        try:
            with anyio.fail_after(self._database.wait_s):  # for a thread: what has one is not abandoned
                return await to_thread.run_sync(partial(method, *args, **kwargs), limiter=self._writers)
        except TimeoutError:
            raise self._database.busy() from None

    def flush(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Return when all decisions so far are written; FeedbackStoreError if not within ``timeout_s``."""
        self._decisions.flush(timeout_s)

    def close(self) -> None:
        """Write what is left and close the database."""
        self._sweeper.stop()
        try:
            self._decisions.close(_CLOSE_TIMEOUT_S)
        finally:
            self._database.close()

    # API keys

    def create_key(
        self,
        name: str,
        scopes: Collection[str],
        *,
        budget_usd: float | None = None,
        requests_per_minute: int | None = None,
        expires_at: float | None = None,
    ) -> tuple[ApiKey, str]:
        """Make an API key.

        Returns
        -------
        key : ApiKey
            As it is kept.
        token : str
            What the client sends. It cannot be had again.

        Raises
        ------
        ParameterError
            A scope is unknown or there is none, the name is empty, or a number breaks its rule.
        """
        with self._database.write(durable=True) as connection:
            return keys.create(
                connection, name, scopes, budget_usd, requests_per_minute, expires_at, time.time()
            )

    def find_key(self, token: str) -> ApiKey | None:
        """The key of a token; None where it is unknown, expired or revoked, after the same work."""
        with self._database.read() as connection:
            return keys.find(connection, token, time.time())

    def keys(self) -> list[ApiKey]:
        """All keys, oldest first."""
        with self._database.read() as connection:
            return keys.all_keys(connection)

    def any_keys(self) -> bool:
        """Whether a key was ever made: revoking the last one does not open the service to everybody."""
        with self._database.read() as connection:
            return keys.any_keys(connection)

    def revoke_key(self, key_id: str) -> bool:
        """Revoke a key for good; False where there is no such key, or it was revoked before."""
        with self._database.write(durable=True) as connection:
            return keys.revoke(connection, key_id, time.time())

    # Decisions

    def add_decision(self, record: DecisionRecord) -> None:
        """Take a decision without waiting: a thread writes it within about 50 ms.

        Raises
        ------
        ParameterError
            A field cannot be stored.
        FeedbackStoreError
            The database has failed for so long that no more decisions can be kept in memory.
        """
        self._decisions.add(record)

    def decision(self, decision_id: str) -> DecisionRecord | None:
        """A decision of any worker, as far as it is written; one of this worker at once."""
        pending = self._decisions.find(decision_id)
        if pending is not None:
            return pending[0]
        with self._database.read() as connection:
            return decisions.find(connection, decision_id)

    def may_be_on_its_way(self, decision_id: str) -> bool:
        """Whether an id is so young that another worker may have yet to write its decision."""
        return 0.0 <= age_s(decision_id, time.time()) < _OTHERS_WRITE_S

    # Feedback

    def add_feedback(
        self,
        given: Feedback,
        *,
        key_id: str | None = None,
        of_any_key: bool = False,
        idempotency_key: str | None = None,
        now: float | None = None,
    ) -> Accepted:
        """Accept feedback: when this returns, it is on the disk.

        User and LLM are those of the decision where they are not given. The first cost that is reported of a
        decision counts as spent by its user and its API key, in the day and the month of the decision, up to
        a hundred times the cost that was expected, if any was; what :meth:`settle` booked already, for a
        decision of the endpoint ``chat``, does not.

        Parameters
        ----------
        given
            The feedback.
        key_id
            API key that it came with, which must be the decision's, if that has one; None where the service
            asks for no key.
        of_any_key
            Whether it may be about the decision of another key.
        idempotency_key
            Name of this feedback among those of the same API key; the same again is accepted once.
        now
            Seconds since 1970; None asks the clock.

        Raises
        ------
        ParameterError
            A field breaks its rule.
        UnknownDecisionError
            There is no such decision, or it is another key's.
        IdempotencyConflictError
            The idempotency key was used for other feedback.
        ErasedUserError
            It is of a user who was erased, or happened before one was readmitted.
        """
        check_name("idempotency_key", idempotency_key)
        decision = None
        if given.decision_id is not None:
            check_name("decision_id", given.decision_id)
            decision = self.decision(given.decision_id)
            if decision is None or not (of_any_key or key_id is None or decision.key_id in (None, key_id)):
                raise UnknownDecisionError(f"no decision {given.decision_id[:60]!r}")
        feedback.check(given, decision)
        when = time.time() if now is None else now
        along = nullcontext() if decision is None else self._decisions.written_with(decision.decision_id)
        with along, self._database.write(durable=True) as connection:
            at = when if given.occurred_at is None else min(given.occurred_at, when)
            erasures.hold(connection)
            feedback.take_turn(connection)
            if decision is not None:
                self._write_or_refuse(connection, decision)
                if decision.user is not None:  # what follows from it is as old
                    at = min(at, decision.created_at)
            user = given.user or (None if decision is None else decision.user)
            erasures.refuse(connection, user, at)
            return feedback.add(connection, given, decision, key_id, idempotency_key, when)

    def _write_or_refuse(self, connection: Connection, decision: DecisionRecord) -> None:
        """See to it that a decision is there; UnknownDecisionError where it is deleted, or is to be."""
        if (pending := self._decisions.find(decision.decision_id)) is not None:
            decisions.write(connection, [pending[1]])
        if decisions.find(connection, decision.decision_id) is None:
            raise UnknownDecisionError(f"no decision {decision.decision_id[:60]!r}")

    def events_of(self, user: str, limit: int = 200) -> list[StoredEvent]:
        """Choices among the last ``limit`` judgements of a user, oldest first.

        Of several judgements of a decision the one that happened last counts, in whatever order they
        arrived. Disapproval is no choice: it does not tell what the user wants instead.
        """
        with self._database.read() as connection:
            return feedback.events_of(connection, user, limit)

    def items_of(self, user: str, since: float | None = None, limit: int = 200) -> dict[str, float]:
        """Items of the last ``limit`` feedbacks of a user that hold any, with the sums of their weights.

        ``since`` leaves out what happened up to that time, in seconds since 1970.
        """
        with self._database.read() as connection:
            return feedback.items_of(connection, user, -math.inf if since is None else since, limit)

    def users_changed_since(self, cursor: int) -> tuple[int, list[str]]:
        """Users whose choices or items changed by feedback behind a cursor, and the next cursor."""
        with self._database.read() as connection:
            return feedback.users_changed_since(connection, cursor)

    def export(
        self,
        folder: Path,
        *,
        since: float | None = None,
        until: float | None = None,
        encoder_of: Callable[[str], EncoderIdentity | None] = lambda _: None,
        some_tasks: bool = False,
    ) -> Exported:
        """Write what was learned as the tables that the batch jobs read; see the module ``export``.

        Parameters
        ----------
        folder
            Written beside its name and renamed, so it must not be there.
        since, until
            Takes feedback received from ``since`` on, before ``until``, in seconds since 1970; None: all.
        encoder_of
            Tells the encoder of a release, or None where it is not known: that of the embeddings is kept
            beside them, and those of other encoders are left out.
        some_tasks
            Keep the tasks that some choices have, null for the others, which ``train-router`` does not read;
            else choices have tasks only where all do.

        Raises
        ------
        ppr.errors.OutputExistsError
            The folder is there.
        ppr.errors.ResourceError
            It cannot be written.
        """
        self.flush()
        return export.export(self._database, folder, since, until, encoder_of, some_tasks=some_tasks)

    # Sessions

    def session(self, session_id: str) -> Session | None:
        """The LLM that a conversation is held with, however long ago; None for a new one."""
        with self._database.read() as connection:
            return sessions.find(connection, session_id)

    def keep_session(self, session_id: str, user: str | None, llm: str, decision_id: str, now: float) -> None:
        """Remember the LLM of a conversation; ErasedUserError where its user was erased."""
        for name, value in (("session_id", session_id), ("user", user), ("llm", llm)):
            check_name(name, value)
        with self._database.write(durable=False) as connection:
            erasures.refuse(connection, user, now)
            sessions.keep(connection, Session(session_id, user, llm, decision_id, now))

    # Spending

    def spent_usd(self, subjects: Collection[str], period: str) -> dict[str, float]:
        """What each subject spent in a period, with what is reserved; see :func:`period_of`."""
        with self._database.read() as connection:
            return spending.spent_usd(connection, subjects, period)

    def reserve(
        self,
        budgets: Mapping[str, float | None],
        period: str,
        usd: float,
        *,
        now: float | None = None,
    ) -> str | None:
        """Reserve a sum for all subjects, or for none.

        Parameters
        ----------
        budgets
            What each subject may spend in the period, USD; None for any sum.
        period
            From :func:`period_of`.
        usd
            The sum.
        now
            Seconds since 1970; None asks the clock.

        Returns
        -------
        str or None
            Id for :meth:`settle` or :meth:`release`; None where a budget would be exceeded. Without either,
            the sum counts as spent.

        Raises
        ------
        ErasedUserError
            A subject is a user who was erased.
        """
        for subject in budgets:
            check_name("subject", subject)
        when = time.time() if now is None else now
        with self._database.write(durable=False) as connection:
            for subject in budgets:
                if subject.startswith("user:"):
                    erasures.refuse(connection, subject.removeprefix("user:"), when)
            return spending.reserve(connection, budgets, period, usd, when)

    def settle(self, reservation_id: str, usd: float) -> bool:
        """Replace a reservation by what was spent; False, and nothing booked, where it is gone."""
        with self._database.write(durable=False) as connection:
            return spending.settle(connection, reservation_id, usd)

    def release(self, reservation_id: str) -> bool:
        """Drop a reservation of which nothing was spent; False where it is gone."""
        with self._database.write(durable=False) as connection:
            return spending.release(connection, reservation_id)

    # Rate limits

    def take(self, bucket: str, per_minute: int, now: float) -> Taken:
        """Ask whether a request is within a rate limit over all workers, and count it if so.

        Parameters
        ----------
        bucket
            What the limit is for, such as an API key.
        per_minute
            Requests allowed in a minute of the clock.
        now
            Seconds since 1970.
        """
        return self._rates.take(bucket, per_minute, now)


def open_store(url: str, wait_s: float = LONGEST_WAIT_S) -> Store:
    """Open the store of a URL, made or brought up to date where necessary.

    Parameters
    ----------
    url
        ``sqlite:///path/to/file.db`` or ``postgresql+psycopg://user:password@host/database``.
    wait_s
        Longest of each wait for others who write: for a thread, for those of this process, for other
        processes.

    Raises
    ------
    ParameterError
        The URL is of another kind.
    MissingDataError
        The driver is not installed.
    FeedbackStoreError
        It cannot be opened or written, or was written by a newer version.
    """
    return Store(Database(url, wait_s))
