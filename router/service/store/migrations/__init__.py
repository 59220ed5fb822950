"""Migrations of the feedback store's schema, in Alembic's form."""
