"""What became of releases: the switches from one to another, and what follows from them. Pure.

Releases that were active form a stack. ``activate`` puts one on top; ``rollback`` goes back to one, and what
lay above it was rolled back from. ``follow`` is what a copy of releases somewhere else was switched to: back
where it was active here before, else on top; what goes down by it was not judged here, but what that
place was rolled back from (``dropped``) is nothing to go back to here either.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from router.errors import ReleaseError

Action = Literal["activate", "rollback", "follow"]
ANY = "*"
"""Any version, or none: no name of a release."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch.

    Attributes
    ----------
    version
        What was switched to.
    action
        Why.
    at
        When, ISO 8601.
    before
        Version that was current before, or None.
    dropped
        What the place that is followed was rolled back from, as far as it was active here.
    """

    version: str
    action: str
    at: str
    before: str | None
    dropped: tuple[str, ...] = ()

    def to_text(self) -> str:
        """One line of JSON."""
        told = asdict(self)
        if not self.dropped:
            del told["dropped"]
        return json.dumps(told)

    @classmethod
    def from_text(cls, text: str | bytes) -> Switch | None:
        """A switch as it was written; None for a line that was not written to its end."""
        try:
            entry = json.loads(text)
            before = entry["before"]
            return cls(
                str(entry["version"]),
                str(entry["action"]),
                str(entry["at"]),
                None if before is None else str(before),
                tuple(str(version) for version in entry.get("dropped", ())),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def earlier(switches: Iterable[Switch], current: str | None, there: Collection[str]) -> list[str]:
    """Versions that were active before the current one and are still there, the last one first."""
    stack, _ = _replay(switches)
    if current in stack:
        stack = stack[: stack.index(current)]
    return [version for version in reversed(stack) if version in there]


def active(switches: Iterable[Switch]) -> list[str]:
    """Versions that were active and not rolled back from, the last one last."""
    return _replay(switches)[0]


def rolled_back(switches: Iterable[Switch], current: str | None) -> frozenset[str]:
    """Versions that were rolled back from and not switched to again."""
    return frozenset(_replay(switches)[1] - {current})


def _replay(switches: Iterable[Switch]) -> tuple[list[str], set[str]]:
    """The stack, and what was rolled back from."""
    stack, dropped = list[str](), set[str]()
    for switch in switches:
        known = switch.version in stack
        if switch.action == "rollback" or (switch.action == "follow" and known):
            kept = stack[: stack.index(switch.version)] if known else []
            if switch.action == "rollback":
                dropped.update(stack[len(kept) :])
                dropped.update(() if switch.before is None else (switch.before,))
            stack = kept
        stack = [version for version in stack if version not in switch.dropped]
        dropped.discard(switch.version)
        stack = [version for version in stack if version != switch.version] + [switch.version]
    return stack, dropped


def rollback_target(place: str, current: str | None, earlier: list[str], to: str | None) -> str:
    """Version that a rollback goes to: the first of the earlier ones, or the one asked for among them.

    Raises
    ------
    ReleaseError
        There is none, or not this one.
    """
    if not earlier:
        where = "to go back to" if current is None else f"before {current}"
        raise ReleaseError(f"{place}: there is no release {where}")
    if to is not None and to not in earlier:
        where = "that was in use before" if current is None else f"before {current}"
        raise ReleaseError(f"{place}: {to!r} is not a release {where}")
    return earlier[0] if to is None else to


def check_switch(place: str, version: str, before: str | None, expected: str | None, *, there: bool) -> None:
    """Raise a :class:`ReleaseError` where a switch is no longer what was meant."""
    if not there:
        raise ReleaseError(f"{place}: there is no release {version!r} any more; nothing was switched")
    if expected not in (ANY, before):
        raise ReleaseError(
            f"{place}: {before} became the current release meanwhile, in the place of {expected}; "
            "nothing was switched"
        )
