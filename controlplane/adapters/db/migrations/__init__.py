"""Alembic's folder: `env.py`, and one file a migration in `versions/`. How to add one: docs/runtime.md."""
