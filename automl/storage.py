"""Opens a database for Optuna and the ledger, and keeps its password out of sight."""

import os
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from automl.errors import StorageError, UsageError
from automl.errors import redact_urls as redact_urls  # noqa: PLC0414 - the command line imports it here
from automl.ledger.schema import upgrade
from automl.ledger.transaction import storage_error

DEFAULT_URL = "sqlite:///automl.db"
VARIABLE = "AUTOML_STORAGE"
_BUSY_SECONDS = 60.0


@dataclass(frozen=True, repr=False)
class Storage:
    """A database: where Optuna's studies and the ledger lie together.

    Raises:
        UsageError: the URL is none, or its driver is not installed.
        StorageError: the database cannot be reached, or a newer version wrote it.
    """

    url: str

    def __post_init__(self) -> None:
        parsed = _parse(self.url)
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise UsageError(
                f"an SQLite storage needs a file, since other processes share it: {DEFAULT_URL}"
            )
        object.__setattr__(self, "url", _with_driver(parsed))

    @property
    def masked(self) -> str:
        """The URL without its password."""
        return redact_urls(_parse(self.url).render_as_string(hide_password=True))

    def __repr__(self) -> str:
        return f"Storage({self.masked!r})"

    @property
    def has_password(self) -> bool:
        return self.masked != self.url

    def exists(self) -> bool:
        """Whether there is a database to read; a server is taken to have one."""
        file = _parse(self.url).database
        return self._is_server or file is None or file.startswith("file:") or Path(file).exists()

    def option(self) -> str:
        """How a person names this storage on the command line; never with a password."""
        if self.has_password or self.url == DEFAULT_URL:
            return ""
        return f" --storage {shlex.quote(self.url)}"

    @cached_property
    def engine(self) -> Engine:
        """The ledger's engine; its tables are made or migrated first."""
        engine = self._connect(create_engine(self.url, **self._settings))
        upgrade(engine)
        return engine

    @cached_property
    def trials(self) -> BaseStorage:
        """Optuna's storage on the same database."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            storage = self._open_optuna()
        except DBAPIError as error:
            raise storage_error(error, self.engine) from error
        except ImportError as error:
            raise UsageError(_no_driver(_parse(self.url))) from error
        except RuntimeError as error:
            raise StorageError(f"{self.masked}: {' '.join(str(error).split())}") from error
        # Connections made so far lack the settings below.
        storage.engine.dispose()
        self._connect(storage.engine, immediate=False)
        return get_storage(storage)

    def _open_optuna(self) -> RDBStorage:
        # The ledger comes first: its migration is locked, so that of two processes that start
        # on an empty database only one makes tables at a time.
        with self.engine.begin():
            pass
        for attempt in range(5):
            try:
                return RDBStorage(self.url, engine_kwargs=self._settings)
            except DBAPIError:
                # Optuna creates its tables without a lock; who comes second tries again.
                if attempt == 4:
                    raise
        raise AssertionError("the last try returned or raised")

    @property
    def _settings(self) -> dict[str, Any]:
        wait: dict[str, Any] = {} if self._is_server else {"timeout": _BUSY_SECONDS}
        return {"connect_args": wait, "pool_pre_ping": self._is_server}

    @property
    def _is_server(self) -> bool:
        return _parse(self.url).get_backend_name() != "sqlite"

    def _connect(self, engine: Engine, immediate: bool = True) -> Engine:
        if not self._is_server:
            event.listen(engine, "connect", _sqlite_settings)
            if immediate:
                event.listen(engine, "connect", _sqlite_manual_transactions)
                event.listen(engine, "begin", _sqlite_begin)
        return engine


def storage_url(given: str | None) -> str:
    """The storage asked for: the option, else AUTOML_STORAGE, else a file here."""
    return given or os.environ.get(VARIABLE) or DEFAULT_URL


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause: it quotes what it took for the port, maybe a part of the password.
        shown = re.sub(r":(?!//).*@", ":***@", url, flags=re.DOTALL)
        raise UsageError(
            f"{redact_urls(shown)!r} is no storage URL: expected for example {DEFAULT_URL} or "
            "postgresql://user@host/database"
        ) from None


def _with_driver(url: URL) -> str:
    """The URL with psycopg as the driver of PostgreSQL, since that is what we install."""
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    try:
        url.get_dialect()
        url.get_dialect().import_dbapi()
    except (NoSuchModuleError, ImportError) as error:
        raise UsageError(_no_driver(url)) from error
    return url.render_as_string(hide_password=False)


def _no_driver(url: URL) -> str:
    if url.get_backend_name() == "postgresql":
        return f"no driver for {url.drivername}: pip install 'automl[postgresql]'"
    return f"no driver for a database of kind {url.drivername!r}: use sqlite or postgresql"


def _sqlite_settings(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _sqlite_manual_transactions(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _sqlite_begin(connection: Any) -> None:
    # A transaction that will write takes the lock at once: one that reads first and writes
    # later would fail where another wrote in between.
    reads = connection.get_execution_options().get("automl_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
