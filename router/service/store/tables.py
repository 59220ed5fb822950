"""Tables of the feedback store; :mod:`router.service.store.migrations` makes them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

# Revision of the schema that these tables describe.
SCHEMA = "0002"

metadata = MetaData()

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("secret_sha256", LargeBinary(32), nullable=False),
    Column("scopes", Text, nullable=False),  # with blanks between them
    Column("budget_usd", Float(53)),
    Column("requests_per_minute", Integer),
    Column("created_at", Float(53), nullable=False),
    Column("expires_at", Float(53)),
    Column("revoked_at", Float(53)),
)

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("created_at", Float(53), nullable=False),
    Column("user_key", Text),
    Column("release", Text, nullable=False),
    Column("llm", Text, nullable=False),
    Column("propensity", Float(53), nullable=False),
    Column("source", Text, nullable=False),
    Column("task", Text),
    Column("query_hash", Text),
    Column("query_text", Text),
    Column("query_embedding", LargeBinary),  # float32, little-endian
    Column("offered", Text, nullable=False),  # JSON list
    Column("cost_usd", Float(53)),
    Column("key_id", Text),
    Column("session_id", Text),
    Column("endpoint", Text, nullable=False),
    # Whether a reported cost has been added to what was spent.
    Column("charged", Boolean, nullable=False),
    Index("decisions_by_user", "user_key"),
)

feedback = Table(
    "feedback",
    metadata,
    # Ascending in the order of commits: what other workers follow.
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("feedback_id", Text, nullable=False, unique=True),
    Column("decision_id", Text),
    Column("user_key", Text),
    Column("llm", Text),
    Column("verdict", SmallInteger, nullable=False),
    Column("thumbs", SmallInteger),
    Column("score", Float(53)),
    Column("cost_usd", Float(53)),
    Column("latency_ms", Float(53)),
    Column("items", Text),  # JSON list of pairs
    Column("at", Float(53), nullable=False),  # when it happened, not later than it was received
    Column("received_at", Float(53), nullable=False),
    Column("key_id", Text),
    Column("idempotency", Text, unique=True),  # API key and idempotency key
    Column("body_sha256", LargeBinary(32)),
    Index("feedback_by_user", "user_key", "at", "feedback_id"),
    Index("feedback_by_decision", "decision_id"),
    sqlite_autoincrement=True,
)

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("user_key", Text),
    Column("llm", Text, nullable=False),
    Column("decision_id", Text, nullable=False),
    Column("updated_at", Float(53), nullable=False),
    Index("sessions_by_user", "user_key"),
)

spending = Table(
    "spending",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("usd", Float(53), nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("reservation_id", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("period", Text, nullable=False),
    Column("usd", Float(53), nullable=False),
    Column("created_at", Float(53), nullable=False),
    Index("reservations_by_subject", "subject", "period"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("user_digest", Text, primary_key=True),
    # Ascending in the order of commits, whatever the clocks say: what workers follow.
    Column("position", BigInteger, nullable=False),
    Column("requested_at", Float(53), nullable=False),
    Column("lifted_at", Float(53)),
    # Whether rows of the user may be left, which are deleted some at a time.
    Column("unswept", Boolean, nullable=False),
    Index("erasures_by_position", "position", unique=True),
)

rates = Table(
    "rates",
    metadata,
    Column("bucket", Text, primary_key=True),
    Column("minute", BigInteger, nullable=False),
    Column("taken", BigInteger, nullable=False),
)
