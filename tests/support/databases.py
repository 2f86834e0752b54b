"""Real databases for tests: an SQLite file, or one made on a server for the test alone.

AUTOML_TEST_POSTGRES, AUTOML_TEST_MYSQL and AUTOML_TEST_REDIS name the servers; local ones are found
by default. Where none answers a test is skipped, unless AUTOML_TEST_EXPECT lists the kind: then it
fails.
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
    """The URL of the server of a kind."""
    variable, local = SERVERS[kind]
    return os.environ.get(variable) or local


@contextmanager
def database(kind: str, directory: Path) -> Iterator[str]:
    """The URL of an empty database, gone afterwards; skips where there is no server."""
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
    """The URL of an empty journal in Redis, gone afterwards; skips where there is no server."""
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
    """Skip for want of a server; fail where one is expected."""
    variable, _ = SERVERS[kind]
    unavailable(kind, f"no {kind} at {make_url(server(kind))!r} ({variable}): {error}")


def unavailable(kind: str, reason: str) -> NoReturn:
    """Skip for want of something this machine may lack; fail where it is expected."""
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
