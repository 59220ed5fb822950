"""Rules of what goes into the store, checked before the caller is told that it was taken."""

from __future__ import annotations

import math

from router.errors import ParameterError


def check_name(name: str, value: str | None) -> None:
    """Refuse a name that one of the databases cannot hold, or that is empty.

    Raises
    ------
    ParameterError
        It is empty, or holds NUL or half a surrogate pair.
    """
    if value is not None and (not value or not is_storable(value)):
        raise ParameterError(f"{name!r} must be text, not empty and without NUL (got {value[:60]!r})")


def is_storable(text: str) -> bool:
    """Whether PostgreSQL and SQLite both can hold a text."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_number(
    name: str, value: float | None, *, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """Refuse a number that is not finite or out of its range.

    Raises
    ------
    ParameterError
        It is.
    """
    if value is None or (math.isfinite(value) and at_least <= value <= at_most):
        return
    bounds = [f"at least {at_least:g}"] * (at_least > -math.inf) + [f"at most {at_most:g}"] * (
        at_most < math.inf
    )
    raise ParameterError(f"{name!r} must be {', '.join(['finite', *bounds])} (got {value})")
