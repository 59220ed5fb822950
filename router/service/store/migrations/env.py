"""What Alembic runs: the migrations, in one transaction of the connection that is handed over."""

from __future__ import annotations

from alembic import context

# Alembic leaves SQLite's migrations outside a transaction, though SQLite can undo a change of its schema.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
