"""Users who asked to be forgotten: their rows are deleted, and no others are written from then on.

Whoever writes a row that names a user asks here first, in the transaction that writes: what was under way
when a user was erased, in whatever worker, is refused or dropped. In PostgreSQL such writers hold a lock
together, and an erasure waits for it alone; in SQLite there is one writer at a time anyway.

An erasure is recorded first, durably, and from then on nobody reads what is left of the user. Decisions,
which may be many, are deleted some hundred at a time, so that others who write get a turn. One that was
broken off is gone on with by whoever sweeps next; the record does not name the user, who is then looked for
among all.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection

from sqlalchemy import Connection, and_, bindparam, delete, exists, func, select, text, update

from router.erasure import Erasure, user_digest
from router.service.store.checks import check_name
from router.service.store.database import ERASURE_LOCK, Database, insert
from router.service.store.errors import ErasedUserError
from router.service.store.records import Applied, Erased
from router.service.store.sweeping import Sweeper
from router.service.store.tables import decisions, erasures, feedback, reservations, sessions, spending

_STEP_S = 1e-6
_SKEW_S = 60.0  # times that are further ahead of the clock than this are mistakes, and not followed
_BATCH_ROWS = 500
_PAUSE_S = 0.01
_OTHERS_SWEEP_S = 30.0
_USER = "user:"  # begins a user's name among the subjects of spending
_RECORD = (erasures.c.user_digest, erasures.c.requested_at, erasures.c.lifted_at)
_ANY = select(erasures.c.user_digest).limit(1)
_AMONG = select(*_RECORD).where(erasures.c.user_digest.in_(bindparam("digests", expanding=True)))
_FIND = select(*_RECORD).where(erasures.c.user_digest == bindparam("digest"))
_SINCE = (
    select(erasures.c.position, *_RECORD)
    .where(erasures.c.position > bindparam("cursor"))
    .order_by(erasures.c.position)
)
_UNSWEPT = select(erasures.c.user_digest, erasures.c.position).where(erasures.c.unswept)
_OTHERS = feedback.alias("others")


def hold(connection: Connection) -> None:
    """See to it that no user is erased before this transaction ends."""
    _lock(connection, "pg_advisory_xact_lock_shared")


def among(connection: Connection, users: Collection[str]) -> dict[str, Erasure]:
    """Erasures of those of the users who ever were erased, by the user."""
    if not users or connection.execute(_ANY).first() is None:
        return {}
    by_digest = {user_digest(user): user for user in users}
    found = connection.execute(_AMONG, {"digests": list(by_digest)})
    return {by_digest[row.user_digest]: Erasure(*row) for row in found}


def covered(connection: Connection, user: str | None, at: float) -> bool:
    """Whether something that happened with a user is erased."""
    erasure = None if user is None else _found(connection, user_digest(user))
    return erasure is not None and erasure.covers(at)


def refuse(connection: Connection, user: str | None, at: float) -> None:
    """Refuse to write in this transaction of something that happened with a user who was erased.

    Raises
    ------
    ErasedUserError
        The user is erased, or was, and this is not younger than the readmission.
    """
    hold(connection)
    if covered(connection, user, at):
        raise ErasedUserError


def since(connection: Connection, cursor: int) -> tuple[int, list[Erasure]]:
    """Erasures that changed after a cursor, in the order of their changes, and the next cursor."""
    found = connection.execute(_SINCE, {"cursor": cursor}).all()
    return (found[-1].position if found else cursor), [Erasure(*row[1:]) for row in found]


class Erasing:
    """What a :class:`~router.service.store.Store` does about users who ask to be forgotten."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sweeper = Sweeper(self.sweep)

    def erase_user(self, user: str, *, wait_s: float = math.inf, now: float | None = None) -> Erased:
        """Delete all that names a user, under whatever API key, and take no more of it.

        Decisions, feedback with its idempotency keys, sessions, what was spent and reserved, and the
        decisions for nobody in particular that the user alone claimed by feedback; those that others claimed
        too lose their text. Decisions of any worker that are not written yet never are.

        Parameters
        ----------
        user
            Key, as requests name it; it need not be known.
        wait_s
            How long to go on deleting; what is left then is deleted by a thread.
        now
            Seconds since 1970; None asks the clock, in PostgreSQL that of its server.
        """
        check_name("user", user)
        digest = user_digest(user)
        with self._database.write(durable=True) as connection:
            _lock(connection, "pg_advisory_xact_lock")
            erasure = _found(connection, digest)
            again = erasure is not None and erasure.active
            if erasure is None or not erasure.active:
                erasure = Erasure(digest, _next_time(connection, now))
            _record(connection, erasure)
            rows = _delete_rows(connection, user)
            done = _delete_decisions(connection, user, rows)
        done = done or self._delete_decisions(user, rows, wait_s)
        swept = done and self._database.sweep()
        if not swept:
            self._sweeper.wake()
        return Erased(erasure, dict(rows), again, swept)

    def readmit_user(self, user: str, *, now: float | None = None) -> bool:
        """Take an erased user again, as one who is new; False where the user is not erased."""
        check_name("user", user)
        self._delete_decisions(user, Counter(), math.inf)  # what is from before must not come back
        with self._database.write(durable=True) as connection:
            _lock(connection, "pg_advisory_xact_lock")
            return _lift(connection, user_digest(user), _next_time(connection, now))

    def erasures(self) -> tuple[Erasure, ...]:
        """All erasures, those of users who were readmitted too, oldest first."""
        return tuple(sorted(self.erasures_since(0)[1], key=lambda one: one.requested_at))

    def erasures_since(self, cursor: int) -> tuple[int, list[Erasure]]:
        """Erasures that were recorded or lifted behind a cursor, at first 0, and the next cursor."""
        with self._database.read() as connection:
            return since(connection, cursor)

    def apply_erasures(self, given: Collection[Erasure]) -> Applied:
        """Record erasures of before, and delete what is there of the users: after a restored backup.

        Of the same user the later erasure counts, and a readmission of it. Erasures keep their times.
        """
        lifted: list[Erasure] = []
        with self._database.write(durable=True) as connection:
            _lock(connection, "pg_advisory_xact_lock")
            n_new = 0
            for one in given:
                there = _found(connection, one.user_digest)
                newer = there is None or there.requested_at < one.requested_at
                if newer:
                    _record(connection, Erasure(one.user_digest, one.requested_at))
                same = there is not None and there.requested_at == one.requested_at and there.active
                if not one.active and (newer or same):
                    lifted.append(one)
                n_new += newer or (same and not one.active)
        rows, done = self._finish()
        if done:
            with self._database.write(durable=True) as connection:
                _lock(connection, "pg_advisory_xact_lock")
                for one in lifted:
                    _lift(connection, one.user_digest, one.lifted_at)
        return Applied(n_new, dict(rows), self.sweep())

    def sweep(self) -> bool:
        """Go on with erasures that were broken off, and let nothing of them remain in SQLite's files.

        False where somebody who reads or writes is in the way, or the store is being closed.
        """
        return self._finish()[1] and self._database.sweep()

    def sweep_soon(self) -> None:
        """Sweep in a thread, unless whoever erased has done so until then."""
        self._sweeper.wake(_OTHERS_SWEEP_S)

    def _finish(self) -> tuple[Counter[str], bool]:
        """Delete what is left of users whose erasure was broken off; rows by table, and whether all is."""
        rows: Counter[str] = Counter()
        with self._database.read() as connection:
            found = connection.execute(_UNSWEPT).all()
        if not found:
            return rows, True
        digests = {row.user_digest for row in found}
        for user in self._users_of(digests):
            with self._database.write(durable=True) as connection:
                hold(connection)
                if (erasure := _found(connection, user_digest(user))) and erasure.active:
                    rows += _delete_rows(connection, user)
            if not self._delete_decisions(user, rows, math.inf):
                return rows, False
        last = max(row.position for row in found)
        with self._database.write(durable=False) as connection:  # also of those of whom nothing was there
            done = update(erasures).where(erasures.c.unswept, erasures.c.position <= last)
            connection.execute(done.values(unswept=False))
        return rows, True

    def _users_of(self, digests: Collection[str]) -> set[str]:
        """Users of these digests among all that rows name."""
        named: set[str] = set()
        for column in (table.c.user_key for table in (decisions, feedback, sessions)):
            with self._database.read() as connection:
                users = connection.scalars(select(column).distinct().where(column.is_not(None)))
                named.update(user for user in users if user_digest(user) in digests)
        for column in (spending.c.subject, reservations.c.subject):
            with self._database.read() as connection:
                subjects = connection.scalars(select(column).distinct().where(column.startswith(_USER)))
                named.update(
                    user
                    for user in (subject.removeprefix(_USER) for subject in subjects)
                    if user_digest(user) in digests
                )
        return named

    def _delete_decisions(self, user: str, rows: Counter[str], wait_s: float) -> bool:
        """Delete the decisions of an erased user in turn with others who write; whether none is left."""
        end_s = time.monotonic() + wait_s
        while True:
            begun_s = time.monotonic()
            with self._database.write(durable=False) as connection:
                hold(connection)
                if _delete_decisions(connection, user, rows):
                    return True
            pause_s = max(_PAUSE_S, time.monotonic() - begun_s)
            if time.monotonic() > end_s or self._sweeper.stopping.wait(pause_s):
                return False


def _found(connection: Connection, digest: str) -> Erasure | None:
    row = connection.execute(_FIND, {"digest": digest}).first()
    return None if row is None else Erasure(*row)


def _record(connection: Connection, erasure: Erasure) -> None:
    """Write down that a user is erased, and that rows may be left; one who is already stays in place."""
    row = {
        "user_digest": erasure.user_digest,
        "position": _next_position(connection),
        "requested_at": erasure.requested_at,
        "lifted_at": None,
        "unswept": True,
    }
    query = insert(connection, erasures).values(row)
    set_ = {name: value for name, value in row.items() if name != "user_digest"}
    connection.execute(query.on_conflict_do_update(index_elements=["user_digest"], set_=set_))


def _lift(connection: Connection, digest: str, at: float | None) -> bool:
    """Write down that an erased user is taken again; False where the user is not erased."""
    query = update(erasures).where(erasures.c.user_digest == digest, erasures.c.lifted_at.is_(None))
    changed = query.values(lifted_at=at, position=_next_position(connection))
    return connection.execute(changed).rowcount == 1


def _delete_rows(connection: Connection, user: str) -> Counter[str]:
    """Delete all that names a user or tells of one but decisions for the user; rows by table."""
    claimed = select(feedback.c.decision_id).where(
        feedback.c.user_key == user, feedback.c.decision_id.is_not(None)
    )
    for_nobody = and_(decisions.c.user_key.is_(None), decisions.c.decision_id.in_(claimed))
    by_others = exists().where(
        _OTHERS.c.decision_id == decisions.c.decision_id,
        _OTHERS.c.user_key.is_not(None),
        _OTHERS.c.user_key != user,
    )
    # Theirs too, but the words may be the user's.
    words = update(decisions).where(for_nobody, by_others)
    connection.execute(words.values(query_text=None, session_id=None))
    alone = select(decisions.c.decision_id).where(for_nobody, ~by_others)
    of_nobody = and_(feedback.c.user_key.is_(None), feedback.c.decision_id.in_(alone))
    steps = [
        (feedback, of_nobody),
        (decisions, decisions.c.decision_id.in_(alone)),
        (feedback, feedback.c.user_key == user),
        (sessions, sessions.c.user_key == user),
        (spending, spending.c.subject == _USER + user),
        (reservations, reservations.c.subject == _USER + user),
    ]
    rows: Counter[str] = Counter()
    for table, of in steps:
        rows[str(table.name)] += connection.execute(delete(table).where(of)).rowcount
    return rows


def _delete_decisions(connection: Connection, user: str, rows: Counter[str]) -> bool:
    """Delete some decisions for an erased user, and count them; whether there are no more."""
    digest = user_digest(user)
    erasure = _found(connection, digest)
    if erasure is None or not erasure.active:  # readmitted meanwhile, by somebody who saw to it
        return True
    some = select(decisions.c.decision_id).where(decisions.c.user_key == user).limit(_BATCH_ROWS)
    deleted = connection.execute(delete(decisions).where(decisions.c.decision_id.in_(some))).rowcount
    rows[str(decisions.name)] += deleted
    if deleted == _BATCH_ROWS:
        return False
    connection.execute(update(erasures).where(erasures.c.user_digest == digest).values(unswept=False))
    return True


def _next_position(connection: Connection) -> int:
    """Position of a change, larger than that of any change before; in a transaction that is alone."""
    newest: int | None = connection.scalar(select(func.max(erasures.c.position)))
    return 1 + (newest or 0)


def _next_time(connection: Connection, now: float | None) -> float:
    """Time of a change: the clock's, or just after that of a change before where clocks differ a little."""
    if now is None:
        now = time.time()
        if connection.dialect.name == "postgresql":  # one clock for all hosts
            now = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or now)
    last: list[float | None] = [
        connection.scalar(select(func.max(column)).where(column <= now + _SKEW_S))
        for column in (erasures.c.requested_at, erasures.c.lifted_at)
    ]
    # Rounded to what other clocks and records keep.
    return round(max([now, *(at + _STEP_S for at in last if at is not None)]), 6)


def _lock(connection: Connection, function: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT {function}(:key)"), {"key": ERASURE_LOCK})
