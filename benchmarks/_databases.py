"""Databases of a benchmark's own: made for it alone, and gone afterwards."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from automl.errors import AutoMLError
from automl.storage.storage import Storage

KINDS = ("sqlite", "journal", "postgresql", "mariadb")


class SkippedError(Exception):
    """There is no such database here, or one side cannot open it; the text says why."""


@dataclass(frozen=True)
class Database:
    """An empty database as each side opens it; picklable, so that workers can, too."""

    kind: str
    url: str

    def ours(self) -> Storage:
        """Our storage on it; the trials of a journal have their ledger in SQLite beside it.

        Raises:
            SkippedError: this version of automl cannot.
        """
        try:
            if self.kind == "journal":
                return Storage(f"journal:///{self.url}", f"sqlite:///{self.url}.ledger.db")
            return Storage(self.url)
        except (AutoMLError, TypeError) as error:
            raise SkippedError(f"automl cannot open {self.kind}: {error}") from error

    def bare(self) -> BaseStorage:
        """Optuna's storage on it, as a plain script opens it.

        SQLite has our settings, for without WAL a bare loop waits for the disk several times as
        long, and that is not what is compared.
        """
        if self.kind == "journal":
            return JournalStorage(JournalFileBackend(self.url))
        return self.ours().trials if self.kind == "sqlite" else RDBStorage(self.url)

    def plain(self) -> BaseStorage:
        """Optuna's storage with no setting of ours but the time that SQLite waits for a lock."""
        if self.kind == "sqlite":
            return RDBStorage(self.url, engine_kwargs={"connect_args": {"timeout": 60.0}})
        return self.bare()


@contextmanager
def database(kind: str) -> Iterator[Database]:
    """An empty database.

    Raises:
        SkippedError: there is no server.
    """
    if kind in ("sqlite", "journal"):
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / f"{kind}.db"
            yield Database(kind, f"sqlite:///{file}" if kind == "sqlite" else str(file))
        return
    server, name = _SERVERS[kind](), f"automl_benchmark_{uuid.uuid4().hex[:8]}"
    _execute(server, f"CREATE DATABASE {name}")
    try:
        url = server.set(database=name).render_as_string(hide_password=False)
        yield Database(kind, url)
    finally:
        _execute(server, f"DROP DATABASE {name}{' WITH (FORCE)' if kind == 'postgresql' else ''}")


def _postgresql() -> URL:
    url = os.environ.get("AUTOML_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
    return make_url(url).set(drivername="postgresql+psycopg")


def _mariadb() -> URL:
    url = os.environ.get("AUTOML_TEST_MYSQL", "mysql://root@127.0.0.1:3306/")
    return make_url(url).set(drivername="mysql+pymysql")


_SERVERS: dict[str, Callable[[], URL]] = {"postgresql": _postgresql, "mariadb": _mariadb}


def _execute(server: URL, statement: str) -> None:
    try:
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()
    except (SQLAlchemyError, ImportError) as error:
        cause = str(error).strip().splitlines()[0]
        raise SkippedError(f"no server at {server!r}: {cause}") from error
