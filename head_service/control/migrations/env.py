"""Alembic runs this; `Store.migrate` hands it the connection."""

from alembic import context

from head_service.control.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite can: all of a migration or nothing.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
