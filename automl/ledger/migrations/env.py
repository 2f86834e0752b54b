"""Alembic's environment, which migrates over the ledger's connection."""

from alembic import context

from automl.ledger.models import Base
from automl.ledger.schema import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    include_name=lambda name, kind, parents: kind != "table" or str(name).startswith("automl_"),
)
context.run_migrations()
