"""Which releases go when room is made, and how.

Never one that is needed: the current one, the good one that a rollback would go to, and what is newer than
the current one. Somebody is about to switch to that, or it was rolled back from, and as long as it is there
a pipeline knows not to publish the same again.

Erasures of users go before that, once they were carried out in the current release: then nothing but that one
is needed. Before, what is needed stays with what it holds, and the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from router.errors import ParameterError, ReleaseError
from router.releases.history import earlier
from router.releases.places import Place

CURRENT, GO_BACK, NEWER = "current", "a rollback goes to it", "newer than the current one"
_Reason = tuple[str, bool]
"""Why a release should go, and whether that is because of erasures."""


@dataclass(frozen=True, slots=True)
class PruneRule:
    """What is to go; at least one of ``keep`` and ``erased_before`` is given.

    Attributes
    ----------
    keep
        The newest that stay, at least 1; all others go. None: none goes for its place.
    older_than_days
        Of those, only what was made longer ago goes.
    erased_before
        What was made before users' erasures were carried out up to this time goes too, however new, and even
        if a rollback would go to it.
    """

    keep: int | None = None
    older_than_days: float | None = None
    erased_before: datetime | None = None

    def __post_init__(self) -> None:
        if self.keep is None and self.erased_before is None:
            raise ParameterError("give 'keep', 'erased_before', or both")
        if self.keep is not None and self.keep < 1:
            raise ParameterError(f"'keep' must be positive (got {self.keep})")
        if self.older_than_days is not None and self.keep is None:
            raise ParameterError("'older_than_days' goes with 'keep'")
        if self.older_than_days is not None and not 0 <= self.older_than_days < float("inf"):
            raise ParameterError(f"'older_than_days' must not be negative (got {self.older_than_days})")

    def holds_erased(self, record: dict[str, Any] | None) -> bool:
        """Whether a release, also a damaged one, may hold what should have been erased."""
        if self.erased_before is None:
            return False
        until = None if record is None else record["erased_until"]
        return until is None or datetime.fromisoformat(until) < self.erased_before

    def wanted(self, newer: int, record: dict[str, Any] | None, now: datetime) -> _Reason | None:
        """Why a release should go, or None; ``newer`` is the number of those newer than it."""
        if self.holds_erased(record):
            if record is None:
                return "its record is damaged: it may hold users who were erased", True
            return f"erasures up to {record['erased_until'] or 'none'} only were carried out in it", True
        if self.keep is not None and newer >= self.keep:
            made = None if record is None else datetime.fromisoformat(record["created"])
            days = self.older_than_days
            if days is None or made is None or made < now - timedelta(days=days):
                return f"{newer} are newer", False
        return None


def prune(
    place: Place, rule: PruneRule, *, dry_run: bool = False, now: datetime | None = None
) -> dict[str, Any]:
    """Remove releases that a rule names and nobody needs, and what earlier removals left.

    Returns ``removed`` (version, reason, freed bytes), ``kept`` (what the rule names but is needed, and why),
    ``unerased`` (those among them that erasures should have removed), ``left`` (versions), ``leftovers`` and
    ``freed_bytes`` of both. A service that has one of them open goes on.

    Raises
    ------
    ReleaseError
        It cannot be read which release is the current one; nothing was removed.
    ResourceError
        The place cannot be reached or written.
    """
    moment = now or datetime.now(UTC)
    kept, going = list[dict[str, str]](), dict[str, str]()
    unerased = list[str]()
    with place.locked():
        current, there = _current(place), place.versions()
        records = {version: _record(place, version) for version in there}
        named = {
            version: found
            for newer, version in enumerate(reversed(there))
            if (found := rule.wanted(newer, records[version], moment)) is not None
        }
        cleaned = current in there and not rule.holds_erased(records[current])
        erased = {version for version, (_, by_erasure) in named.items() if by_erasure}
        needed = _needed(place, current, there, without=erased if cleaned else set())
        for version in there:
            if version not in named:
                continue
            reason, by_erasure = named[version]
            if version not in needed:
                going[version] = reason
                continue
            kept.append({"version": version, "reason": reason, "needed": needed[version]})
            if by_erasure:
                unerased.append(version)
        freed = place.freed(list(going))
        for version in () if dry_run else going:
            place.remove(version)
    cleared = place.clear(dry_run=dry_run, now=moment)
    leftovers = {name: n for name, n in cleared.items() if not any(version in name for version in going)}
    return {
        "removed": [
            {"version": version, "reason": reason, "freed_bytes": freed[version]}
            for version, reason in going.items()
        ],
        "kept": kept,
        "unerased": unerased,
        "left": [version for version in there if version not in going],
        "leftovers": list(leftovers),
        "freed_bytes": sum(freed.values()) + sum(leftovers.values()),
        "dry_run": dry_run,
    }


def _current(place: Place) -> str | None:
    try:
        return place.current()
    except ReleaseError as error:
        raise ReleaseError(
            f"{error}; nothing was removed: 'fairpath releases activate' or 'rollback' says which release is "
            "in use"
        ) from None


def _needed(place: Place, current: str | None, there: Sequence[str], without: set[str]) -> dict[str, str]:
    """Versions that must stay, and why; only the current one may be among ``without``."""
    needed = {version: NEWER for version in there if version > (current or "") and version not in without}
    for version in earlier(place.history(), current, there):
        if version not in without and _is_good(place, version):
            needed[version] = GO_BACK
            break
    if current is not None:
        needed[current] = CURRENT
    return needed


def _is_good(place: Place, version: str) -> bool:
    try:
        place.check(version, verify=False)
    except ReleaseError:
        return False
    return True


def _record(place: Place, version: str) -> dict[str, Any] | None:
    """Record of a release; None for one that is damaged."""
    try:
        return place.record(version)
    except ReleaseError:
        return None
