"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("budget_usd", sa.Float(53)),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("expires_at", sa.Float(53)),
        sa.Column("revoked_at", sa.Float(53)),
    )
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("created_at", sa.Float(53), nullable=False),
        sa.Column("user_key", sa.Text),
        sa.Column("release", sa.Text, nullable=False),
        sa.Column("llm", sa.Text, nullable=False),
        sa.Column("propensity", sa.Float(53), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("task", sa.Text),
        sa.Column("query_hash", sa.Text),
        sa.Column("query_text", sa.Text),
        sa.Column("query_embedding", sa.LargeBinary),
        sa.Column("offered", sa.Text, nullable=False),
        sa.Column("cost_usd", sa.Float(53)),
        sa.Column("key_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("charged", sa.Boolean, nullable=False),
    )
    op.create_table(
        "feedback",
        sa.Column(
            "position",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("feedback_id", sa.Text, nullable=False, unique=True),
        sa.Column("decision_id", sa.Text),
        sa.Column("user_key", sa.Text),
        sa.Column("llm", sa.Text),
        sa.Column("verdict", sa.SmallInteger, nullable=False),
        sa.Column("thumbs", sa.SmallInteger),
        sa.Column("score", sa.Float(53)),
        sa.Column("cost_usd", sa.Float(53)),
        sa.Column("latency_ms", sa.Float(53)),
        sa.Column("items", sa.Text),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("received_at", sa.Float(53), nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("idempotency", sa.Text, unique=True),
        sa.Column("body_sha256", sa.LargeBinary(32)),
        sqlite_autoincrement=True,
    )
    op.create_index("feedback_by_user", "feedback", ["user_key", "at", "feedback_id"])
    op.create_index("feedback_by_decision", "feedback", ["decision_id"])
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("user_key", sa.Text),
        sa.Column("llm", sa.Text, nullable=False),
        sa.Column("decision_id", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Float(53), nullable=False),
    )
    op.create_table(
        "spending",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("period", sa.Text, primary_key=True),
        sa.Column("usd", sa.Float(53), nullable=False),
    )
    op.create_table(
        "reservations",
        sa.Column("reservation_id", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("period", sa.Text, nullable=False),
        sa.Column("usd", sa.Float(53), nullable=False),
        sa.Column("created_at", sa.Float(53), nullable=False),
    )
    op.create_index("reservations_by_subject", "reservations", ["subject", "period"])
    op.create_table(
        "rates",
        sa.Column("bucket", sa.Text, primary_key=True),
        sa.Column("minute", sa.BigInteger, nullable=False),
        sa.Column("taken", sa.BigInteger, nullable=False),
    )
