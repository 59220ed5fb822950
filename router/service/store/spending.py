"""What users and API keys spend in a period, with reservations for what is being spent.

A request reserves what it may cost before it is made, and settles what it did cost. Spent and reserved sums
together never exceed a budget: the check and the reservation are one transaction that holds the rows of all
its subjects. A reservation that nobody settles, because its worker was killed, counts for good: the upstream
may have answered, and charged for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Connection, delete, func, select, union_all

from router.service.store import erasures
from router.service.store.checks import check_number
from router.service.store.database import insert
from router.service.store.records import new_id
from router.service.store.tables import reservations, spending

_ROUNDING_USD = 1e-9


def period_of(unix_s: float, unit: Literal["day", "month"]) -> str:
    """Name of the day (``2026-11-24``) or month (``2026-11``) of a time, in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d" if unit == "day" else "%Y-%m")


def add(connection: Connection, subjects: Collection[str], period: str, usd: float) -> None:
    """Add to what was spent."""
    query = insert(connection, spending)
    query = query.on_conflict_do_update(
        index_elements=["subject", "period"], set_={"usd": spending.c.usd + query.excluded.usd}
    )
    for subject in sorted(subjects):  # always in this order: nobody waits for each other
        connection.execute(query, {"subject": subject, "period": period, "usd": usd})


def spent_usd(connection: Connection, subjects: Collection[str], period: str) -> dict[str, float]:
    """What each subject spent in a period, reserved sums included."""
    sums = union_all(
        *(
            select(table.c.subject, func.sum(table.c.usd).label("usd"))
            .where(table.c.subject.in_(subjects), table.c.period == period)
            .group_by(table.c.subject)
            for table in (spending, reservations)
        )
    )
    spent = dict.fromkeys(subjects, 0.0)
    for subject, usd in connection.execute(sums):
        spent[subject] += usd
    return spent


def reserve(
    connection: Connection, budgets: Mapping[str, float | None], period: str, usd: float, now: float
) -> str | None:
    """Reserve a sum for all subjects or, where it would exceed a budget, for none."""
    check_number("usd", usd, at_least=0.0)
    add(connection, budgets, period, 0.0)  # the rows are there now, and held until the commit
    spent = spent_usd(connection, budgets, period)
    for subject, budget in budgets.items():
        if budget is not None and spent[subject] + usd > budget + _ROUNDING_USD:
            return None
    reservation_id = new_id()
    rows = [
        {
            "reservation_id": reservation_id,
            "subject": subject,
            "period": period,
            "usd": usd,
            "created_at": now,
        }
        for subject in sorted(budgets)
    ]
    if rows:
        connection.execute(reservations.insert(), rows)
    return reservation_id


def settle(connection: Connection, reservation_id: str, usd: float) -> bool:
    """Replace a reservation by what was spent; False where it was settled or released."""
    check_number("usd", usd, at_least=0.0)
    erasures.hold(connection)  # or a subject that is erased meanwhile would be written again
    own = reservations.c.reservation_id == reservation_id
    held = connection.execute(select(reservations.c.subject, reservations.c.period).where(own)).all()
    if not held:
        return False
    subjects, period = [row.subject for row in held], held[0].period
    add(connection, subjects, period, 0.0)  # before the reservations, in the order of `reserve`
    if not connection.execute(delete(reservations).where(own)).rowcount:
        return False
    add(connection, subjects, period, usd)
    return True


def release(connection: Connection, reservation_id: str) -> bool:
    """Drop a reservation; False where there was none."""
    query = delete(reservations).where(reservations.c.reservation_id == reservation_id)
    return connection.execute(query).rowcount > 0
