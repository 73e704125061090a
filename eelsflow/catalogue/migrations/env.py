"""What alembic runs: migrations on the connection that `eelsflow.catalogue.tables` hands over."""

from alembic import context

from eelsflow.catalogue.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
