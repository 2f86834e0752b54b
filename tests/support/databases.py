"""Real databases for tests: an SQLite file, or a database created on a server for one test.

AUTOML_TEST_POSTGRES, AUTOML_TEST_MYSQL and AUTOML_TEST_REDIS name the servers, by default local
ones. Without a server a test is skipped, or fails if AUTOML_TEST_EXPECT lists its kind.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import redis
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

SERVERS = {
    "postgresql": ("AUTOML_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres"),
    "mysql": ("AUTOML_TEST_MYSQL", "mysql://root@127.0.0.1:3306/mysql"),
    "redis": ("AUTOML_TEST_REDIS", "redis://127.0.0.1:6379/0"),
}
_DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
_DROP = {"postgresql": "DROP DATABASE {} WITH (FORCE)", "mysql": "DROP DATABASE {}"}
_QUOTE = {"postgresql": '"', "mysql": "`"}
KINDS = ("sqlite", "postgresql", "mysql")


def server(kind: str) -> str:
    """The URL of the server for a kind of database."""
    variable, local = SERVERS[kind]
    return os.environ.get(variable) or local


@contextmanager
def database(kind: str, directory: Path) -> Iterator[str]:
    """Create an empty database and drop it afterwards; skip the test without a server."""
    if kind == "sqlite":
        yield f"sqlite:///{directory / 'automl.db'}"
        return
    name = f"automl_test_{uuid.uuid4().hex}"
    url = make_url(server(kind)).set(drivername=_DRIVERS[kind], database=name)
    _on_server(kind, f"CREATE DATABASE {_QUOTE[kind]}{name}{_QUOTE[kind]}")
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        _on_server(kind, _DROP[kind].format(f"{_QUOTE[kind]}{name}{_QUOTE[kind]}"))


@contextmanager
def redis_journal() -> Iterator[str]:
    """Give the URL of an empty journal in Redis, deleted afterwards; skip without a server."""
    prefix = f"automl_test_{uuid.uuid4().hex}"
    client = redis.Redis.from_url(server("redis"), socket_connect_timeout=3)
    try:
        client.ping()
    except redis.RedisError as error:
        missing("redis", error)
    try:
        yield f"{server('redis')}?prefix={prefix}"
    finally:
        for key in client.scan_iter(f"{prefix}:*"):
            client.delete(key)
        client.close()


def missing(kind: str, error: object) -> NoReturn:
    """Skip the test because a server is missing; fail if it is expected."""
    variable, _ = SERVERS[kind]
    unavailable(kind, f"no {kind} at {make_url(server(kind))!r} ({variable}): {error}")


def unavailable(kind: str, reason: str) -> NoReturn:
    """Skip the test because this machine lacks something; fail if it is expected."""
    if kind in os.environ.get("AUTOML_TEST_EXPECT", "").split(","):
        pytest.fail(f"{reason}; AUTOML_TEST_EXPECT says there is one", pytrace=False)
    pytest.skip(reason)


def _on_server(kind: str, statement: str) -> None:
    url = make_url(server(kind)).set(drivername=_DRIVERS[kind])
    arguments = {"connect_timeout": 3}
    engine = create_engine(
        url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
    )
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    except OperationalError as error:
        if error.statement is not None:
            raise
        missing(kind, error.orig)
