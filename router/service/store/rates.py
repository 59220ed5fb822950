"""Rate limits over all workers: at most so many requests in each minute of the clock.

The shared table counts what has been given out in the current minute of a bucket. A worker takes a lease of a
hundredth of the limit and serves requests from it without asking again, so a limit below 200 is exact, and of
a larger one at most a hundredth for each further worker may be left unused when the others are refused. No
more than the limit is ever given out.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, update

from router.errors import ParameterError
from router.service.store.checks import check_name
from router.service.store.database import Database, insert
from router.service.store.records import Taken
from router.service.store.tables import rates

MINUTE_S = 60
_LEASES_PER_MINUTE = 100
_THERE = select(rates.c.minute, rates.c.taken).where(rates.c.bucket == bindparam("of")).with_for_update()
_UPDATE = update(rates).where(rates.c.bucket == bindparam("of"))


@dataclass(slots=True)
class _Lease:
    """What this worker may still give out in a minute, and what others may still take."""

    minute: int
    left: int
    in_table: int


class RateLimits:
    """Rate limits of one worker. Safe to share between threads.

    Parameters
    ----------
    database
        Where all workers count.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._minute = 0
        self._leases: dict[str, _Lease] = {}

    def take(self, bucket: str, per_minute: int, now: float) -> Taken:
        """Ask for one request; see :meth:`router.service.store.Store.take`."""
        check_name("bucket", bucket)
        if per_minute < 1:
            raise ParameterError(f"'per_minute' must be positive (got {per_minute})")
        if not self._lock.acquire(timeout=self._database.wait_s):
            raise self._database.busy()
        try:
            minute = int(now // MINUTE_S)
            if minute > self._minute:
                self._minute = minute
                self._leases.clear()
            lease = self._leases.get(bucket)
            if lease is None or (lease.left == 0 and lease.in_table > 0):
                lease = self._leases[bucket] = self._renew(bucket, per_minute)
            if lease.left == 0:
                return Taken(False, 0, max((lease.minute + 1) * MINUTE_S - now, 0.0))
            lease.left -= 1
            return Taken(True, lease.left + lease.in_table, 0.0)
        finally:
            self._lock.release()

    def _renew(self, bucket: str, per_minute: int) -> _Lease:
        with self._database.write(durable=False) as connection:
            return _lease(connection, bucket, self._minute, per_minute)


def _lease(connection: Connection, bucket: str, minute: int, per_minute: int) -> _Lease:
    """Take a lease from the table, as large as is left."""
    query = insert(connection, rates).on_conflict_do_nothing()
    connection.execute(query, {"bucket": bucket, "minute": minute, "taken": 0})
    there = connection.execute(_THERE, {"of": bucket}).one()
    # Another worker's clock may be ahead: its minute is the one that counts.
    minute, taken = (minute, 0) if there.minute < minute else (there.minute, there.taken)
    leased = min(max(per_minute // _LEASES_PER_MINUTE, 1), max(per_minute - taken, 0))
    connection.execute(_UPDATE, {"of": bucket, "minute": minute, "taken": taken + leased})
    return _Lease(minute, leased, max(per_minute - taken - leased, 0))
