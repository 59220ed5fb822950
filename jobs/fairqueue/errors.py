"""Errors of the fair queue.

::

    FairQueueError(JobError)
    ├── FairQueueParameterError(ConfigurationError)  a weight, cost or count breaks its rule        exit 2
    │   └── UnknownJobError                          a job that was never submitted, or is forgotten
    ├── AlreadyInstalledError(ConfigurationError)    one session holds one fair queue               exit 2
    ├── HooksMissingError(OSError)                   this Spark lacks what the fair queue needs     exit 3
    ├── EstimatesFileError(DataError)                the file of learned costs is broken            exit 3
    └── InvariantError(AssertionError)               a defect of the fair queue itself              exit 1

Messages name the field, the rule and the value:
``'weight' of user 'bob' must be positive and finite (got 0)``.
"""

from __future__ import annotations

import math

from jobs.errors import ConfigurationError, JobError
from ppr.errors import DataError

MAX_COST_CORE_S = 1e9  # thirty years of one core; corrections of a larger one would be lost in rounding


class FairQueueError(JobError):
    """Base of every error that the fair queue raises on purpose."""


class FairQueueParameterError(FairQueueError, ConfigurationError):
    """A weight, a cost, a count or a name breaks its rule."""


class UnknownJobError(FairQueueParameterError):
    """The job was never submitted, or has finished and is forgotten."""


class AlreadyInstalledError(FairQueueError, ConfigurationError):
    """A fair queue is installed in this session already."""


class HooksMissingError(FairQueueError, OSError):
    """A hook that the fair queue needs is missing in the running Spark."""


class EstimatesFileError(FairQueueError, DataError):
    """The file of learned costs is damaged or of another version."""


class InvariantError(FairQueueError, AssertionError):
    """The state of the fair queue contradicts itself: a defect, never the caller's fault."""


def require_positive(field: str, value: float) -> float:
    """``value``, if it is a positive finite number.

    Raises
    ------
    FairQueueParameterError
        Otherwise; ``field`` names it in the message.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise FairQueueParameterError(f"{field} must be positive and finite (got {value!r})")
    return value


def require_non_negative(field: str, value: float) -> float:
    """``value``, if it is a finite number of at least 0.

    Raises
    ------
    FairQueueParameterError
        Otherwise; ``field`` names it in the message.
    """
    if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise FairQueueParameterError(f"{field} must be finite and at least 0 (got {value!r})")
    return value


def require_cost(field: str, value: float) -> float:
    """``value``, if it is a number of core-seconds from 0 to :data:`MAX_COST_CORE_S`.

    Raises
    ------
    FairQueueParameterError
        Otherwise; ``field`` names it in the message.
    """
    if require_non_negative(field, value) > MAX_COST_CORE_S:
        raise FairQueueParameterError(f"{field} must be at most {MAX_COST_CORE_S:g} (got {value!r})")
    return value


def require_invariant(holds: bool, rule: str) -> None:
    """Nothing, if ``rule`` holds.

    Raises
    ------
    InvariantError
        Otherwise.
    """
    if not holds:
        raise InvariantError(f"broken invariant: {rule}")
