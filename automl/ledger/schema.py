"""Brings a database's ledger tables to this version, and refuses what a newer one wrote."""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, column, inspect, select, table, text
from sqlalchemy.exc import DBAPIError

from automl.errors import StorageError
from automl.ledger.transaction import storage_error

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "automl_alembic_version"
HEAD = "0003"
"""The newest migration; a test holds it equal to the scripts."""

_LOCK_KEY = 0x6175746F6D6C  # "automl"


def upgrade(engine: Engine) -> None:
    """Create or migrate the ledger's tables; two processes may do so at once.

    Raises:
        StorageError: the database was written by a newer automl, or cannot be written.
    """
    try:
        if _revision(engine) == HEAD:
            return
        with engine.begin() as connection:
            _lock(connection)
            _migrate(connection)
    except DBAPIError as error:
        raise storage_error(error, engine) from error


def _revision(engine: Engine) -> str | None:
    with engine.execution_options(automl_read=True).connect() as connection:
        return _version(connection)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))


def _lock(connection: Connection) -> None:
    """Let one process migrate at a time; SQLite's transaction is exclusive already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = alembic_config(connection)
    current = _version(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise StorageError(
            f"the database is at ledger version {current}, this automl knows up to {HEAD}: "
            "upgrade automl (pip install -U automl)"
        )
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageError(f"the ledger's tables cannot be migrated: {error}") from error


def alembic_config(connection: Connection) -> "Config":
    """Alembic's configuration for a connection; no ini file is needed."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
