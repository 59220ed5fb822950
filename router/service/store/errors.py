"""Errors of the feedback store."""

from __future__ import annotations

from router.errors import ParameterError, ResourceError, UnknownNameError


class FeedbackStoreError(ResourceError):
    """The store cannot be opened, read or written, or is of another version."""


class StoreBusyError(FeedbackStoreError):
    """Others have been writing for too long: the same may be asked again."""


class UnknownDecisionError(UnknownNameError):
    """No decision of this id was recorded."""


class ErasedUserError(ParameterError):
    """The user asked to be forgotten: nothing is kept of them, and nothing answered for them."""

    def __init__(self) -> None:
        super().__init__(
            "this user was erased on request: nothing is kept of them, nothing is answered for them"
        )


class IdempotencyConflictError(ParameterError):
    """An idempotency key was used before, with other contents."""
