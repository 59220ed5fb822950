"""A circuit breaker (Nygard, "Release It!", 2007): whoever fails again and again is not asked for a while.

An upstream that hangs would else cost its whole time limit at each request. After some failures in a row an
LLM rests; then one request tries it, and a failure of that one lets it rest again. It rests for everybody
where callers of two names at least saw it fail: one caller, whose requests may be what takes too long, lets
it rest for that caller only. Each worker finds out for itself.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import structlog
from cachetools import LRUCache

from router.service.settings import BreakerSettings

_MOST_REMEMBERED = 10_000
_ENOUGH_CALLERS = 2

log = structlog.get_logger()


@dataclass(slots=True)
class _Failing:
    """Failures in a row, of how many callers they must be and are, and until when the LLM rests."""

    least_callers: int
    n_failures: int = 0
    callers: set[Hashable] = field(default_factory=set)
    until_s: float = 0.0

    @property
    def rest_s(self) -> float:
        return max(self.until_s - time.monotonic(), 0.0)

    def rests_after(self, n_failures: int) -> bool:
        """Whether there are enough failures for a rest."""
        return self.n_failures >= n_failures and len(self.callers) >= self.least_callers


class Breaker:
    """Which LLMs rest, and for whom. To be used from one event loop.

    Parameters
    ----------
    settings
        When they do, and for how long.
    """

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        # By the LLM, and by the LLM and a caller.
        self._failing: LRUCache[Hashable, _Failing] = LRUCache(_MOST_REMEMBERED)

    def rest_s(self, llm: str, caller: Hashable) -> float:
        """How long an LLM still rests for a caller; 0 where it may be asked."""
        return max((failing.rest_s for failing in self._of(llm, caller)), default=0.0)

    def resting(self, llms: Iterable[str], caller: Hashable) -> frozenset[str]:
        """Those of some LLMs that rest for a caller."""
        return frozenset(llm for llm in llms if self.rest_s(llm, caller)) if self._failing else frozenset()

    def admit(self, llm: str, caller: Hashable) -> bool:
        """Whether an LLM may be asked now; of several requests after a rest, one may."""
        if self.rest_s(llm, caller):
            return False
        for failing in self._of(llm, caller):
            if failing.rests_after(self._settings.failures):
                failing.until_s = time.monotonic() + self._settings.rest_s
        return True

    def succeeded(self, llm: str, caller: Hashable) -> None:
        """An LLM has answered to the end, or refused a request as a caller's mistake."""
        for key in ((llm,), (llm, caller)):
            self._failing.pop(key, None)

    def failed(self, llm: str, caller: Hashable) -> None:
        """An LLM did not answer, or not to the end."""
        for key, least in (((llm,), _ENOUGH_CALLERS), ((llm, caller), 1)):
            failing = self._failing.setdefault(key, _Failing(least))
            failing.n_failures += 1
            if len(failing.callers) < least:
                failing.callers.add(caller)
            if failing.rests_after(self._settings.failures):
                rest_s = self._settings.rest_s
                failing.until_s = time.monotonic() + rest_s
                log.warning(
                    "an LLM rests",
                    llm=llm,
                    failures=failing.n_failures,
                    rest_s=rest_s,
                    for_all=len(key) == 1,
                )

    def _of(self, llm: str, caller: Hashable) -> list[_Failing]:
        found = (self._failing.get(key) for key in ((llm,), (llm, caller)))
        return [failing for failing in found if failing is not None]
