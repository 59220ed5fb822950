"""Errors of the feedback store."""

from __future__ import annotations

from router.errors import ParameterError, ResourceError, UnknownNameError


class FeedbackStoreError(ResourceError):
    """The store cannot be opened, read or written, or is of another version."""


class StoreBusyError(FeedbackStoreError):
    """Others have been writing for too long: the same may be asked again."""


class UnknownDecisionError(UnknownNameError):
    """No decision of this id was recorded."""


class IdempotencyConflictError(ParameterError):
    """An idempotency key was used before, with other contents."""
