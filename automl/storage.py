"""Opens a database for Optuna and the ledger, and keeps its password out of sight."""

import os
import shlex
from dataclasses import dataclass
from functools import cached_property

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from automl.databases import DEFAULT_URL, Database, mask, no_driver, parse
from automl.errors import StorageError, UsageError
from automl.errors import redact_urls as redact_urls  # noqa: PLC0414 - the command line imports it here
from automl.ledger.schema import alone, upgrade
from automl.ledger.transaction import storage_error

VARIABLE = "AUTOML_STORAGE"


@dataclass(frozen=True, repr=False)
class Storage:
    """A database: where Optuna's studies and the ledger lie together.

    Raises:
        UsageError: the URL is none, or its driver is not installed.
        StorageError: the database cannot be reached, or a newer version wrote it.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self._database.url)

    @property
    def _database(self) -> Database:
        return Database(self.url)

    @property
    def masked(self) -> str:
        """The URL without its password."""
        return mask(self.url)

    def __repr__(self) -> str:
        return f"Storage({self.masked!r})"

    @property
    def has_password(self) -> bool:
        return self.masked != self.url

    def exists(self) -> bool:
        """Whether there is a database to read; a server is taken to have one."""
        return self._database.exists()

    def option(self) -> str:
        """How a person names this storage on the command line; never with a password."""
        if self.has_password or self.url == DEFAULT_URL:
            return ""
        return f" --storage {shlex.quote(self.url)}"

    @cached_property
    def engine(self) -> Engine:
        """The ledger's engine; its tables are made or migrated first."""
        engine = self._database.connect({})
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
            raise UsageError(no_driver(parse(self.url).drivername)) from error
        except RuntimeError as error:
            raise StorageError(f"{self.masked}: {' '.join(str(error).split())}") from error
        # Connections made so far lack the settings below.
        storage.engine.dispose()
        self._database.prepare(storage.engine)
        return get_storage(storage)

    def _open_optuna(self) -> RDBStorage:
        if not self._database.is_server:
            with self.engine.begin():
                pass
            return self._make_optuna()
        with alone(self.engine):
            return self._make_optuna()

    def _make_optuna(self) -> RDBStorage:
        for attempt in range(5):
            try:
                return RDBStorage(self.url, engine_kwargs=self._database.settings)
            except DBAPIError:
                # Optuna creates its tables without a lock; who comes second tries again.
                if attempt == 4:
                    raise
        raise AssertionError("the last try returned or raised")


def storage_url(given: str | None) -> str:
    """The storage asked for: the option, else AUTOML_STORAGE, else a file here."""
    return given or os.environ.get(VARIABLE) or DEFAULT_URL
