"""What Alembic runs for a migration: on the connection, in the transaction, of who asked for it."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes["metadata"],
    transactional_ddl=True,  # SQLite's too, where BEGIN is ours: half a migration never stays
    render_as_batch=True,  # SQLite changes a table by copying it
)
context.run_migrations()
