"""Real databases for tests: an SQLite file, or a PostgreSQL database made for the test alone."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

SERVER = os.environ.get("AUTOML_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
KINDS = ("sqlite", "postgresql")


@contextmanager
def database(kind: str, directory: Path) -> Iterator[str]:
    """The URL of an empty database, gone afterwards; skips where there is no server."""
    if kind == "sqlite":
        yield f"sqlite:///{directory / 'automl.db'}"
        return
    name = f"automl_test_{uuid.uuid4().hex}"
    _on_server("CREATE DATABASE {}", name)
    try:
        url = make_url(SERVER).set(drivername="postgresql+psycopg", database=name)
        yield url.render_as_string(hide_password=False)
    finally:
        _on_server("DROP DATABASE {} WITH (FORCE)", name)


def _on_server(statement: str, name: str) -> None:
    plain = make_url(SERVER).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        connection = psycopg.connect(plain, autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL at {make_url(SERVER)!r} (AUTOML_TEST_POSTGRES): {error}")
    with connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
