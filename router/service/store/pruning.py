"""Removing what piles up and is no longer asked for, beside a service that goes on answering.

Rows are removed some hundred at a time, each batch a transaction of its own, with pauses at least as long as
the batches take: whoever else writes gets a turn. A pruning that is broken off has removed what it has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, select

from router.errors import ParameterError
from router.service.store import spending
from router.service.store.erasures import Erasing
from router.service.store.feedback import take_turn
from router.service.store.rates import MINUTE_S
from router.service.store.tables import decisions, feedback, rates, reservations, sessions

DAY_S = 86_400.0
_BATCH_ROWS = 500
_PAUSE_S = 0.02
_UNJUDGED = ~exists().where(feedback.c.decision_id == decisions.c.decision_id)


class Pruning(Erasing):
    """What a :class:`~router.service.store.Store` does about what piles up."""

    def prune(
        self,
        older_than_s: float,
        *,
        now: float | None = None,
        tell: Callable[[str, int], None] = lambda *_: None,
    ) -> dict[str, int]:
        """Remove decisions without feedback, sessions, reservations and rates of before a time.

        Feedback, the decisions that it is about, and what was spent stay. A reservation that nobody settled
        counts as spent from then on.

        Parameters
        ----------
        older_than_s
            Their age, at least a day: what is younger may still be judged, settled or gone on with.
        now
            Seconds since 1970; None asks the clock.
        tell
            Called after each batch with the table and the rows removed from it so far.

        Returns
        -------
        dict
            Rows removed, by table.

        Raises
        ------
        ParameterError
            ``older_than_s`` is less than a day, or no number.
        """
        if not DAY_S <= older_than_s < float("inf"):
            raise ParameterError(f"'older_than_s' must be finite, at least {DAY_S:g} (got {older_than_s})")
        before = (time.time() if now is None else now) - older_than_s
        steps: list[tuple[Table, ColumnElement[bool], Callable[..., int]]] = [
            # Ids begin with their time, so those of later decisions need not be looked at.
            (
                decisions,
                and_(
                    decisions.c.decision_id < f"{max(round(1e3 * before), 0):012x}",
                    decisions.c.created_at < before,
                    _UNJUDGED,
                ),
                _delete,
            ),
            (sessions, sessions.c.updated_at < before, _delete),
            (reservations, reservations.c.created_at < before, _settle),
            (rates, rates.c.minute < before // MINUTE_S, _delete),
        ]
        removed = {}
        for table, dead, remove in steps:
            name = str(table.name)
            removed[name] = 0
            for ids in self._batches(table, dead):
                begun_s = time.monotonic()
                with self._database.write(durable=False) as connection:
                    removed[name] += remove(connection, table, dead, ids)
                tell(name, removed[name])
                time.sleep(max(_PAUSE_S, time.monotonic() - begun_s))
        self.sweep()
        return removed

    def _batches(self, table: Table, dead: ColumnElement[bool]) -> Iterator[list[Any]]:
        """First columns of the primary keys of dead rows, some at a time; read beside those who write."""
        key, last = table.primary_key.columns[0], ""
        while True:
            query = select(key).distinct().where(dead, key > last).order_by(key).limit(_BATCH_ROWS)
            with self._database.read() as connection:
                ids = list(connection.scalars(query))
            if not ids:
                return
            yield ids
            last = ids[-1]


def _delete(connection: Connection, table: Table, dead: ColumnElement[bool], ids: list[Any]) -> int:
    """Delete those of the rows that are still dead."""
    if table is decisions:  # no feedback comes in between
        take_turn(connection)
    return connection.execute(delete(table).where(table.primary_key.columns[0].in_(ids), dead)).rowcount


def _settle(connection: Connection, _: Table, dead: ColumnElement[bool], ids: list[Any]) -> int:
    """Book reservations as spent."""
    held = select(reservations.c.reservation_id, reservations.c.usd).distinct().order_by("reservation_id")
    rows = connection.execute(held.where(reservations.c.reservation_id.in_(ids), dead)).all()
    return sum(spending.settle(connection, row.reservation_id, row.usd) for row in rows)
