"""Users who asked to be forgotten, and what finds all that names one of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table and the indices."""
    op.create_table(
        "erasures",
        sa.Column("user_digest", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("requested_at", sa.Float(53), nullable=False),
        sa.Column("lifted_at", sa.Float(53)),
        sa.Column("unswept", sa.Boolean, nullable=False),
    )
    op.create_index("erasures_by_position", "erasures", ["position"], unique=True)
    op.create_index("decisions_by_user", "decisions", ["user_key"])
    op.create_index("sessions_by_user", "sessions", ["user_key"])
