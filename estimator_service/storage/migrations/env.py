"""Runs the migrations on the connection that the caller opened a transaction on."""

from alembic import context

from estimator_service.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
