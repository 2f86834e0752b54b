"""SQL databases by URL: their drivers, their settings, and their passwords out of sight."""

import random
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from automl.errors import UsageError
from automl.ledger.sql_errors import Kind, meaning
from automl.storage import mysql, postgresql
from automl.storage.forked_connections import leave_to_parent
from automl.text.redaction import is_secret, redact_urls

DEFAULT_URL = "sqlite:///automl.db"
_WAL_SECONDS = 5.0
"""How long a new SQLite file may be locked by who makes it."""
_PSYCOPG, _PYMYSQL = "postgresql+psycopg", "mysql+pymysql"
_OWN_DRIVERS = {_PSYCOPG: postgresql.driver, _PYMYSQL: mysql.driver}
"""Drivers of which we have a version that does not wait for a silent server for ever."""
_SILENT_SECONDS = 70
"""How long a server may be silent; with one try to connect again it is noticed within 90 s.

Beyond the minute after which it lets go of the locks of a worker that is asleep, and the 50 s for
which InnoDB waits for a lock.
"""
_PATIENT: dict[str, dict[str, int]] = {
    "sqlite": {"timeout": 60},
    "postgresql": {
        "connect_timeout": 10,
        "tcp_user_timeout": 30_000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 4,
    },
    _PSYCOPG: {postgresql.OPTION: _SILENT_SECONDS},
    "mysql": {"connect_timeout": 10, "read_timeout": _SILENT_SECONDS, "write_timeout": 30},
}
"""How long a driver waits for another's lock, or for a server that may be gone without a word.

Without a limit a worker hangs for a quarter of an hour where a network drops what it is given."""

_NOT_WAITING = {
    "postgresql": (
        "SET idle_in_transaction_session_timeout = 60000",
        "SET tcp_keepalives_idle = 10",
        "SET tcp_keepalives_interval = 5",
        "SET tcp_keepalives_count = 4",
    ),
    "mysql": ("SET SESSION idle_transaction_timeout = 60",),  # MariaDB's
}
"""What a server is asked, so that it lets go of the locks of a worker that is gone or asleep."""


@dataclass(frozen=True)
class _Driver:
    """What we reach a kind of database with, and the extra of ours that installs it."""

    name: str
    extra: str


_POSTGRESQL = _Driver(_PSYCOPG, "postgresql")
_MYSQL = _Driver(_PYMYSQL, "mysql")
_DRIVERS = {
    "postgres": _POSTGRESQL,
    "postgresql": _POSTGRESQL,
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
    "mariadb+pymysql": _MYSQL,
}


@dataclass(frozen=True, repr=False)
class Database:
    """A database by its URL; the driver is ours where the URL names none.

    Raises:
        UsageError: the URL is none, or its driver is not installed.
    """

    url: str

    def __post_init__(self) -> None:
        parsed = parse(self.url)
        if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise UsageError(
                f"an SQLite storage needs a file, since other processes share it: {DEFAULT_URL}"
            )
        object.__setattr__(self, "url", _with_driver(parsed))

    def __repr__(self) -> str:
        return f"Database({mask(self.url)!r})"

    @property
    def is_server(self) -> bool:
        return parse(self.url).get_backend_name() != "sqlite"

    def exists(self) -> bool:
        """Whether there is a database to read; a server is taken to have one."""
        file = parse(self.url).database
        return self.is_server or file is None or file.startswith("file:") or Path(file).exists()

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `create_engine` that ours and Optuna's engine share."""
        url = parse(self.url)
        waits = _PATIENT.get(url.get_backend_name(), {}) | _PATIENT.get(url.drivername, {})
        # Above this, InnoDB locks the gaps between rows, and workers wait for each other.
        mysql = url.get_backend_name() == "mysql"
        return {
            # What the URL itself says comes first.
            "connect_args": {k: v for k, v in waits.items() if k not in url.query},
            "pool_pre_ping": self.is_server,
            **({"isolation_level": "READ COMMITTED"} if mysql else {}),
            **({"module": own()} if (own := _OWN_DRIVERS.get(url.drivername)) else {}),
        }

    def connect(self, options: Mapping[str, Any]) -> Engine:
        """An engine for the ledger; options: of its executions."""
        engine = create_engine(self.url, **self.settings, execution_options=options)
        self.prepare(engine)
        if not self.is_server:
            event.listen(engine, "connect", _sqlite_manual_transactions)
            event.listen(engine, "begin", _sqlite_begin)
        return engine

    def prepare(self, engine: Engine) -> None:
        """Set what each connection to this database needs, whosever engine it is."""
        leave_to_parent(engine)
        event.listen(engine, "handle_error", _connect_again)
        kind = parse(self.url).get_backend_name()
        if kind == "sqlite":
            event.listen(engine, "connect", _sqlite_settings)
        elif kind in _NOT_WAITING:
            event.listen(engine, "connect", partial(_ask, _NOT_WAITING[kind]))


def parse(url: str) -> URL:
    """The parts of a storage URL of any kind.

    Raises:
        UsageError: it is none.
    """
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause: it quotes what it took for the port, maybe a part of the password.
        shown = re.sub(r":(?!//).*@", ":***@", url, flags=re.DOTALL)
        raise UsageError(
            f"{redact_urls(shown)!r} is not a storage URL: expected, for example, {DEFAULT_URL} or "
            "postgresql://user@host/database"
        ) from None


def has_password(url: str) -> bool:
    """Whether a URL holds one, as its own part or as an option of its driver."""
    parsed = parse(url)
    return parsed.password is not None or any(map(is_secret, parsed.query))


def mask(url: str) -> str:
    """A URL without its password."""
    return redact_urls(parse(url).render_as_string(hide_password=True))


def _with_driver(url: URL) -> str:
    driver = _DRIVERS.get(url.drivername)
    if driver is not None:
        url = url.set(drivername=driver.name)
    try:
        url.get_dialect().import_dbapi()
    except (NoSuchModuleError, ImportError) as error:
        raise UsageError(no_driver(url.drivername)) from error
    return url.render_as_string(hide_password=False)


def no_driver(name: str) -> str:
    """What to do where a database's driver is missing."""
    extra = next((d.extra for d in _DRIVERS.values() if d.name == name), None)
    if extra is not None:
        return f"no driver for {name}: pip install 'automl[{extra}]'"
    return f"no driver for a database of kind {name!r}: use sqlite, postgresql or mysql"


def _ask(statements: Sequence[str], connection: Any, _: Any) -> None:
    """Set what a server knows of; another make or version may not."""
    cursor = connection.cursor()
    for statement in statements:
        try:
            cursor.execute(statement)
            connection.commit()
        except Exception:
            connection.rollback()
    cursor.close()


def _connect_again(context: Any) -> None:
    """Leave a server that does not take what is written; the next connection may find another."""
    error = context.sqlalchemy_exception
    if isinstance(error, DBAPIError) and meaning(error).kind is Kind.AWAY:
        context.is_disconnect = True


def _sqlite_settings(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    # While another process makes the file, SQLite refuses this at once, however long it may wait.
    end = time.monotonic() + _WAL_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.005, 0.05))
        else:
            return


def _sqlite_manual_transactions(connection: Any, _: Any) -> None:
    connection.isolation_level = None


def _sqlite_begin(connection: Any) -> None:
    # A transaction that will write takes the lock at once: one that reads first and writes
    # later would fail where another wrote in between.
    reads = connection.get_execution_options().get("automl_read", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
