"""Errors of the router package.

::

    RouterError
    ├── ParameterError(ValueError)         the caller's fault: a value outside its rule        exit 2
    │   ├── UnknownNameError(KeyError)     a user, LLM, task or encoder that is not known here  exit 2
    │   ├── NotFittedError(RuntimeError)   scores are asked of a model that has not been fitted  exit 2
    │   └── NotInReleaseError              a release lacks the part that an answer comes from  exit 2
    ├── DataError(ValueError)              the data's fault: a missing column, NaN, wrong shape  exit 3
    │   ├── MissingDataError(FileNotFoundError)  a file, folder or column that is not there    exit 3
    │   ├── BundleError                    a bundle that is damaged, truncated or mismatched   exit 3
    │   └── ReleaseError                   a release that is damaged, or whose parts do not fit  exit 3
    ├── NoCandidateError(LookupError)      no LLM fulfils the constraints of a request         exit 2
    │   └── BudgetSpentError               what user or key have left to spend leaves none    exit 2
    └── ResourceError(OSError)             the machine's or a peer's fault: memory, disk, GPU  exit 3
        └── NotReadyError                  no release is open yet                              exit 3

Messages name the field or the place, the rule, and the value: ``'n_factors' must be positive (got 0)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class RouterError(Exception):
    """Base of every error that this package raises on purpose."""


class ParameterError(RouterError, ValueError):
    """A parameter breaks its rule."""


class UnknownNameError(ParameterError, KeyError):
    """A user, LLM, task or encoder is not known here."""

    # KeyError prints the repr of its argument; the message is meant to be read.
    __str__ = Exception.__str__


class NotFittedError(ParameterError, RuntimeError):
    """Scores are asked of a model that has not been fitted."""


class NotInReleaseError(ParameterError):
    """A release has no items, no graph or no fingerprints, and the answer would come from them."""


class DataError(RouterError, ValueError):
    """The data breaks a rule of its format."""


class MissingDataError(DataError, FileNotFoundError):
    """A file, folder or column is missing."""

    __str__ = Exception.__str__


class BundleError(DataError):
    """A model bundle is damaged, truncated, of another version, or belongs to other parents."""


class ReleaseError(DataError):
    """A release is damaged, incomplete or missing, or its stores do not belong together."""


class NoCandidateError(RouterError, LookupError):
    """No LLM fulfils the constraints of a request.

    Attributes
    ----------
    left_out
        By LLM, the reasons for which it was left out; empty where the message says all.
    """

    def __init__(self, message: str, left_out: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(message)
        self.left_out = dict(left_out or {})


class BudgetSpentError(NoCandidateError):
    """LLMs fulfil the request's own demands, but none is within what its user and its key may still spend."""


class ResourceError(RouterError, OSError):
    """The machine or a peer cannot do it: out of memory, disk full, no GPU."""

    __str__ = Exception.__str__


class NotReadyError(ResourceError):
    """A service has no release open yet."""
