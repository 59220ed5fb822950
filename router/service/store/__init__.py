"""The store that all workers of the service write to: SQLite or PostgreSQL behind the same methods.

Accepted feedback is on the disk before the client hears of it. Decisions are written in batches by a thread
of each worker, so that no request waits for the database; what a killed worker had not written yet, as a rule
50 ms of it, is lost with it, and feedback on that is refused. Changes of the schema are migrations, run when
a store is opened.
"""

from router.service.store.database import LONGEST_WAIT_S
from router.service.store.errors import (
    ErasedUserError,
    FeedbackStoreError,
    IdempotencyConflictError,
    StoreBusyError,
    UnknownDecisionError,
)
from router.service.store.keys import TOKEN_PREFIX
from router.service.store.records import (
    SCOPES,
    Accepted,
    ApiKey,
    Applied,
    DecisionRecord,
    Erased,
    Exported,
    Feedback,
    Scope,
    Session,
    StoredEvent,
    Taken,
    new_id,
)
from router.service.store.spending import period_of
from router.service.store.store import Store, open_store

__all__ = [
    "LONGEST_WAIT_S",
    "SCOPES",
    "TOKEN_PREFIX",
    "Accepted",
    "ApiKey",
    "Applied",
    "DecisionRecord",
    "Erased",
    "ErasedUserError",
    "Exported",
    "Feedback",
    "FeedbackStoreError",
    "IdempotencyConflictError",
    "Scope",
    "Session",
    "Store",
    "StoreBusyError",
    "StoredEvent",
    "Taken",
    "UnknownDecisionError",
    "new_id",
    "open_store",
    "period_of",
]
