"""Budgets of users and API keys: what is left, and what chats cost, reserved and settled.

Budgets hold over all workers, because the shared store refuses a reservation that would exceed one. What an
answer costs in the end may be more than was expected of it, so a budget can be overdrawn by answers that were
under way; from then on only LLMs that cost nothing are asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import anyio
from anyio import to_thread

from router.policy import Catalogue
from router.service.settings import BudgetSettings
from router.service.store import ApiKey, Store, period_of


class Left(NamedTuple):
    """What a user and a key have left to spend in USD, None where they have no budget."""

    user_usd: float | None
    key_usd: float | None


class Budgets:
    """Budgets of users and API keys, per period.

    Parameters
    ----------
    settings
        The budgets.
    store
        Where all workers write what was spent.
    """

    def __init__(self, settings: BudgetSettings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def period(self, now: float) -> str:
        """Name of the period that a time is in, such as ``2026-11``."""
        return period_of(now, self._settings.period)

    def subjects(self, user: str | None, key: ApiKey | None) -> dict[str, float | None]:
        """Who pays, with the budget in USD of each, or None.

        A key pays for itself even without a budget, so that one that it is given later holds from the start
        of the period.
        """
        paying: dict[str, float | None] = {}
        if user is not None:
            paying[f"user:{user}"] = self._settings.user_usd
        if key is not None:
            paying[f"key:{key.key_id}"] = key.budget_usd
        return paying

    async def left(self, user: str | None, key: ApiKey | None, now: float) -> Left:
        """What is left; the store is asked only where there is a budget."""
        budgets: Mapping[str, float] = {
            subject: budget for subject, budget in self.subjects(user, key).items() if budget is not None
        }
        if not budgets:
            return Left(None, None)
        spent = await to_thread.run_sync(self._store.spent_usd, list(budgets), self.period(now))
        left: dict[str, Any] = {name: budget - spent.get(name, 0.0) for name, budget in budgets.items()}
        return Left(left.get(f"user:{user}"), left.get(f"key:{key.key_id}") if key is not None else None)


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation, to be settled or released once; both are done even where their task is cancelled."""

    store: Store
    reservation_id: str | None

    async def settle(self, usd: float) -> None:
        """Replace what was reserved by what was spent."""
        if self.reservation_id is not None:
            with anyio.CancelScope(shield=True):
                await self.store.writing(self.store.settle, self.reservation_id, usd)

    async def release(self) -> None:
        """Give back what was reserved."""
        if self.reservation_id is not None:
            with anyio.CancelScope(shield=True):
                await self.store.writing(self.store.release, self.reservation_id)


class Purse:
    """Pays for chats.

    Parameters
    ----------
    budgets
        Who may spend what.
    store
        Where all workers write what was spent.
    """

    def __init__(self, budgets: Budgets, store: Store) -> None:
        self._budgets = budgets
        self._store = store

    async def reserve(self, user: str | None, key: ApiKey | None, usd: float | None) -> Hold | None:
        """Reserve what an answer is expected to cost.

        Parameters
        ----------
        user, key
            Who pays.
        usd
            Expected cost. None, for unknown, is within no budget; 0 is within any, be it overdrawn.

        Returns
        -------
        Hold or None
            None where a budget would be exceeded.
        """
        paying = self._budgets.subjects(user, key)
        if not paying:
            return Hold(self._store, None)
        if usd is None and any(budget is not None for budget in paying.values()):
            return None
        if not usd:
            paying = dict.fromkeys(paying)
        period = self._budgets.period(time.time())
        with anyio.CancelScope(shield=True):  # a reservation that is made must reach its Hold
            reservation_id = await self._store.writing(self._store.reserve, paying, period, usd or 0.0)
        return None if reservation_id is None else Hold(self._store, reservation_id)


def price_usd(catalogue: Catalogue, llm: str, prompt_tokens: int, answer_tokens: int) -> float | None:
    """Cost of an answer by the catalogue's prices; None where they are not known."""
    if llm not in catalogue.names:
        return None
    usd = float(catalogue.cost_usd(prompt_tokens, answer_tokens)[catalogue.position(llm)])
    return None if math.isnan(usd) else usd
