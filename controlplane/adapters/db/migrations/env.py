"""Run by Alembic. The program gives the connection; when a migration is drafted, `-x url=...` names the database."""

from alembic import context
from sqlalchemy import Connection, create_engine

from controlplane.adapters.db.tables import METADATA


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        # SQLite changes a table by copying it.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    # For drafting a new migration: docs/runtime.md.
    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).begin() as opened:
        migrate(opened)
