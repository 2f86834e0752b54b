"""Temporary databases for benchmarks."""

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
    """This machine has no such database, or one side cannot open it; the message says why."""


@dataclass(frozen=True)
class Database:
    """A database, opened by each side in its own way; picklable, to be passed to workers.

    Attributes:
        kind: One of `KINDS`.
        url: The URL, or the path of a journal file.
    """

    kind: str
    url: str

    def ours(self) -> Storage:
        """Open it as our storage; a journal's ledger is an SQLite file in the same folder.

        Raises:
            SkippedError: This version of automl cannot open it.
        """
        try:
            if self.kind == "journal":
                return Storage(f"journal:///{self.url}", f"sqlite:///{self.url}.ledger.db")
            return Storage(self.url)
        except (AutoMLError, TypeError) as error:
            raise SkippedError(f"automl cannot open {self.kind}: {error}") from error

    def bare(self) -> BaseStorage:
        """Open it as Optuna's storage, as a plain script would.

        SQLite gets our settings: without WAL a bare loop waits for the disk several times as long,
        which is not part of the comparison.
        """
        if self.kind == "journal":
            return JournalStorage(JournalFileBackend(self.url))
        return self.ours().trials if self.kind == "sqlite" else RDBStorage(self.url)

    def plain(self) -> BaseStorage:
        """Open it as Optuna's storage, with only our time limit for locks in SQLite."""
        if self.kind == "sqlite":
            return RDBStorage(self.url, engine_kwargs={"connect_args": {"timeout": 60.0}})
        return self.bare()


@contextmanager
def database(kind: str) -> Iterator[Database]:
    """Create an empty database and drop it at the end.

    Raises:
        SkippedError: The server cannot be reached.
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
