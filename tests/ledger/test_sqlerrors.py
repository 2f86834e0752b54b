"""Classifies errors of real databases: which are retried, what caused them, what to do."""

import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
import servers
import tiny
from databases import database
from optuna.study import StudyDirection
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

import automl
from automl import StorageError
from automl.analysis.doctor import Doctor
from automl.ledger import sql_errors
from automl.ledger.ledger import Ledger
from automl.ledger.sql_errors import Kind, explained, meaning
from automl.ledger.values import Worker
from automl.plugin.report import State
from automl.storage.databases import Database
from automl.storage.storage import Storage
from automl.study.study import open_study

SERVERS = ("postgresql", "mysql")
TINY = {"task": tiny.Nothing, "strategy": "random", "device": "cpu"}
Run = Callable[[str], object]


@pytest.fixture(scope="module", params=SERVERS)
def server(request, tmp_path_factory) -> Iterator[str]:
    """Create a database with all tables for this module."""
    with database(request.param, tmp_path_factory.mktemp("errors")) as url:
        _ = Storage(url).trials
        yield url


on_postgresql = pytest.mark.parametrize("server", ["postgresql"], indirect=True)


@contextmanager
def connected(url: str, **settings: object) -> Iterator[Run]:
    """Run statements on one connection with automl's settings."""
    engine = Database(url).connect({})
    try:
        with engine.connect() as connection:
            yield connection.exec_driver_sql
    finally:
        engine.dispose()


def admin(url: str) -> Engine:
    """Connect outside of the test's database, without transactions."""
    outside = make_url(url).set(database="postgres" if "postgresql" in url else "mysql")
    return create_engine(outside, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def failing(run: Run, *statements: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as caught:
        for statement in statements:
            run(statement)
    return caught.value


def check(error: DBAPIError, kind: Kind, hint: str) -> None:
    assert meaning(error).kind is kind, str(error.orig)
    assert hint in explained(error)


def kind_of(url: str, *statements: str) -> Kind:
    with connected(url) as run:
        return meaning(failing(run, *statements)).kind


# Transient errors.
def test_a_lock_of_another_program_is_transient(server):
    take = {"postgresql": "LOCK TABLE automl_workers", "mysql": "LOCK TABLES automl_workers WRITE"}
    limit = {"postgresql": "SET lock_timeout = 100", "mysql": "SET lock_wait_timeout = 1"}
    kind = make_url(server).get_backend_name()
    with connected(server) as holder, connected(server) as waiter:
        holder(take[kind])
        error = failing(waiter, limit[kind], "DELETE FROM automl_workers")
    check(error, Kind.TRANSIENT, "another program holds a lock")


def test_a_statement_timeout_is_transient(server):
    statements = {
        "postgresql": ("SET statement_timeout = 50", "SELECT pg_sleep(5)"),
        "mysql": ("SET max_statement_time = 0.05", "SELECT SLEEP(5) FROM automl_alembic_version"),
    }
    assert kind_of(server, *statements[make_url(server).get_backend_name()]) is Kind.TRANSIENT


def test_a_cancelled_query_is_transient(server):
    mysql = "mysql" in server
    cancel = "KILL QUERY {}" if mysql else "SELECT pg_cancel_backend({})"
    # MariaDB's SLEEP ends without an error.
    long = (
        f"SELECT COUNT(*) FROM {', '.join(f'information_schema.collations c{n}' for n in '1234')}"
    )
    wait = long if mysql else "SELECT pg_sleep(20)"
    with connected(server) as run, ThreadPoolExecutor(1) as pool:
        own = run("SELECT CONNECTION_ID()" if mysql else "SELECT pg_backend_pid()").scalar_one()
        waiting = pool.submit(failing, run, wait)
        while not waiting.done():
            with admin(server).connect() as other:
                other.exec_driver_sql(cancel.format(own))
            time.sleep(0.1)
        assert meaning(waiting.result()).kind is Kind.TRANSIENT


def test_a_deadlock_is_transient(server):
    with connected(server) as run:
        run("CREATE TABLE IF NOT EXISTS pair (id INTEGER PRIMARY KEY, n INTEGER)")
        run("DELETE FROM pair")
        run("INSERT INTO pair VALUES (1, 0), (2, 0)")
        run("COMMIT")
    both = threading.Barrier(2)

    def cross(first: int, second: int) -> DBAPIError | None:
        with connected(server) as run:
            run(f"UPDATE pair SET n = 1 WHERE id = {first}")
            both.wait()
            try:
                run(f"UPDATE pair SET n = 1 WHERE id = {second}")
                run("COMMIT")
            except DBAPIError as error:
                return error
        return None

    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(cross, *pair) for pair in ((1, 2), (2, 1))]
        errors = [error for end in ends if (error := end.result()) is not None]
    assert [meaning(error).kind for error in errors] == [Kind.TRANSIENT]


# Unavailable servers.
@contextmanager
def read_only(url: str) -> Iterator[str]:
    """Make the database read-only, as after a failover; yield the URL of an affected user."""
    name = make_url(url).database
    if "postgresql" in url:
        servers.cut_connections(url)
        _admin(url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        try:
            yield url
        finally:
            _admin(url, f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        return
    with ordinary_user(url) as own:
        # Other tests connect as root, which is not affected.
        _admin(url, "SET GLOBAL read_only = 1")
        try:
            yield own
        finally:
            _admin(url, "SET GLOBAL read_only = 0")


@contextmanager
def ordinary_user(url: str) -> Iterator[str]:
    """Create a user without permissions on PostgreSQL, or with all of them on MariaDB."""
    name = str(make_url(url).database)
    user = f"u{name[-16:]}"
    own = make_url(url).set(username=user, password="x").render_as_string(hide_password=False)
    if "postgresql" in url:
        _admin(url, f"CREATE ROLE {user} LOGIN PASSWORD 'x'")
        try:
            yield own
        finally:
            _admin(url, f"DROP ROLE {user}")
        return
    _admin(url, f"CREATE USER '{user}'@'%%' IDENTIFIED BY 'x'")
    try:
        _admin(url, f"GRANT ALL ON `{name}`.* TO '{user}'@'%%'")
        yield own
    finally:
        _admin(url, f"DROP USER '{user}'@'%%'")


def _admin(url: str, statement: str) -> None:
    with admin(url).connect() as connection:
        connection.exec_driver_sql(statement)


def test_a_read_only_server_is_unavailable(server):
    with read_only(server) as url:
        error = failing_write(url)
    check(error, Kind.AWAY, "the server is read-only")
    assert error.connection_invalidated


def failing_write(url: str) -> DBAPIError:
    with connected(url) as run:
        return failing(run, "DELETE FROM automl_workers", "COMMIT")


def test_a_ledger_waits_for_a_read_only_server(server, caplog):
    with read_only(server) as url:
        storage = Storage(url)
        ledger = Ledger(storage.engine, "u")
        with pytest.raises(StorageError, match="the server is read-only"):
            ledger.enter(Worker("a"))
        with pytest.raises(StorageError, match="the server is read-only"):
            storage.trials.create_new_study([StudyDirection.MINIMIZE], "s")
        with storage.outage_retry.enabled(threading.Event(), 60.0), ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ledger.stop_exhausted, "done")
            while "rejects requests" not in caplog.text and not waiting.done():
                time.sleep(0.05)
            _admin(server, _WRITABLE[make_url(server).get_backend_name()](server))
            waiting.result(60)
        storage.engine.dispose()
    assert "rejects requests, retrying for up to 1 min" in caplog.text
    assert "answers again" in caplog.text


_WRITABLE: dict[str, Callable[[str], str]] = {
    "postgresql": lambda url: (
        f'ALTER DATABASE "{make_url(url).database}" RESET default_transaction_read_only'
    ),
    "mysql": lambda url: "SET GLOBAL read_only = 0",
}


def test_a_server_without_free_connections_is_unavailable(server):
    if "mysql" in server:
        pytest.skip("MariaDB reports the same for the limit of a user, which the next test checks")
    name = make_url(server).database
    servers.cut_connections(server)
    _admin(server, f'ALTER DATABASE "{name}" CONNECTION LIMIT 0')
    try:
        with (
            ordinary_user(server) as own,
            pytest.raises(StorageError, match="raise max_connections, or use fewer workers"),
        ):
            _ = Storage(own).engine
    finally:
        _admin(server, f'ALTER DATABASE "{name}" CONNECTION LIMIT -1')


def test_a_user_of_mariadb_without_free_connections_waits(tmp_path):
    with database("mysql", tmp_path) as url, ordinary_user(url) as own:
        user = make_url(own).username
        _admin(url, f"ALTER USER '{user}'@'%%' WITH MAX_USER_CONNECTIONS 1")
        with connected(own), pytest.raises(DBAPIError) as caught, connected(own):
            pass
    check(caught.value, Kind.AWAY, "use fewer workers")


# Errors that a test cannot cause, but that a server can be made to raise.
SAID = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'said' USING ERRCODE = '{}'; END $$",
    "mysql": "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {}, MESSAGE_TEXT = 'said'",
}


MEANT = {
    "postgresql": {
        "54001": (Kind.OWN, "nest values less"),
        "54011": (Kind.FATAL, "columns that automl did not create"),
        "54023": (Kind.FATAL, "fewer arguments of a function"),
    },
    "mysql": {
        1135: (Kind.AWAY, "use fewer workers"),
        **dict.fromkeys((1158, 1159, 1160, 1161), (Kind.AWAY, "check the network")),
        1412: (Kind.TRANSIENT, "another program is changing the tables"),
        1615: (Kind.TRANSIENT, "table_definition_cache"),
    },
}


def test_an_errors_code_gives_its_kind_and_a_hint(server):
    backend = make_url(server).get_backend_name()
    for code, (kind, hint) in MEANT[backend].items():
        with connected(server) as run:
            error = failing(run, SAID[backend].format(code))
        check(error, kind, hint)
        assert explained(error).startswith("said; ")


@on_postgresql
def test_a_value_that_is_nested_too_deep_is_the_trials_own(server):
    deep = "SELECT (repeat('[', 20000) || repeat(']', 20000))::json"
    assert kind_of(server, "SET max_stack_depth = '100kB'", deep) is Kind.OWN


# TLS.
@contextmanager
def greeting(answer: bytes, reset: bool = False) -> Iterator[int]:
    """Yield the port of a server that answers the request for TLS and then disconnects."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                with client:
                    client.recv(8)
                    client.sendall(answer)
                    client.recv(8)
                    if reset:
                        linger = struct.pack("ii", 1, 0)
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    served = threading.Thread(target=serve, daemon=True)
    served.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        served.join()


def connecting(port: int, options: str) -> DBAPIError:
    url = f"postgresql://postgres@127.0.0.1:{port}/x?{options}"
    with pytest.raises(DBAPIError) as caught, connected(url):
        pass
    return caught.value


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("mode", ["require", "prefer"])
def test_a_server_that_closes_during_the_tls_handshake_is_unavailable(reset, mode):
    with greeting(b"S", reset) as port:
        check(connecting(port, f"sslmode={mode}"), Kind.AWAY, "")


@pytest.mark.parametrize(
    "options",
    ["sslmode=require", "sslmode=verify-full&sslrootcert=/no/such.crt", "sslmode=nosuch"],
)
def test_tls_that_the_server_lacks_is_fatal(options):
    with greeting(b"N") as port:
        check(connecting(port, options), Kind.FATAL, "check sslmode and the certificates")


# Fatal errors.
@pytest.mark.parametrize(
    ("kind", "changes", "hint"),
    [
        ("postgresql", {"database": "nosuch"}, "check the database's name, or create it"),
        ("postgresql", {"username": "nosuch"}, "check the user and the password"),
        ("postgresql", {"port": 1}, "start the server, or check its host and port"),
        ("postgresql", {"host": "no.such.host.invalid"}, "check the host's name"),
        ("mysql", {"database": "nosuch"}, "check the database's name, or create it"),
        ("mysql", {"username": "nosuch", "password": "x"}, "check the user and the password"),
        ("mysql", {"port": 1}, "start the server, or check its host and port"),
    ],
)
def test_a_wrong_url_fails_at_once_with_its_cause(kind, changes, hint, tmp_path):
    with database(kind, tmp_path) as url:
        wrong = make_url(url).set(**changes).render_as_string(hide_password=False)
        for opened in (lambda: Storage(wrong).engine, lambda: Storage(wrong).trials):
            with pytest.raises(StorageError, match=hint) as caught:
                opened()
            assert "\n" not in str(caught.value)


def test_a_missing_permission_is_named(server):
    with ordinary_user(server) as own:
        if "mysql" in server:
            user, name = make_url(own).username, make_url(own).database
            _admin(server, f"REVOKE ALL ON `{name}`.* FROM '{user}'@'%%'")
            _admin(server, f"GRANT SELECT ON `{name}`.* TO '{user}'@'%%'")
        error = failing_write(own)
    check(error, Kind.FATAL, "get the permission to create and write tables")


def test_tables_of_another_version_are_named(server):
    for statement in ("SELECT * FROM automl_nosuch", "SELECT nosuch FROM automl_workers"):
        with connected(server) as run:
            error = failing(run, statement)
        check(error, Kind.FATAL, "missing or of another version")


@on_postgresql
def test_an_unknown_error_is_one_line_with_its_code(server):
    with connected(server) as run:
        error = failing(
            run, "DO $$ BEGIN RAISE EXCEPTION 'odd\nthing' USING ERRCODE='ZZ123'; END $$"
        )
    assert meaning(error).kind is Kind.FATAL
    assert explained(error) == "odd (SQLSTATE ZZ123)"


def test_an_unknown_error_in_a_search_loses_no_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOML_LEASE_SECONDS", "1")
    with database("postgresql", tmp_path) as url:
        study, _ = automl.search(
            tiny.plane, trainer=tiny.Steps, storage=url, study="s", trials=1, **TINY
        )
        with study.storage.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'odd' USING ERRCODE = 'ZZ123'; END $$"
            )
            connection.exec_driver_sql(
                "CREATE TRIGGER odd BEFORE UPDATE ON automl_trials FOR EACH ROW "
                "WHEN (NEW.phase = 'settled') EXECUTE FUNCTION odd()"
            )
        with pytest.raises(StorageError, match=r"odd \(SQLSTATE ZZ123\)"):
            automl.resume("s", storage=url, trials=2)
        with study.storage.engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER odd ON automl_trials")
        study, _ = automl.resume("s", storage=url)
        assert [view.state for view in study.views.trials()] == [State.COMPLETE] * 3
        assert Doctor(open_study(Storage(url), "s")).findings() == []


# SQLite.
def test_a_locked_file_is_transient(sqlite_url):
    url = f"{sqlite_url}?timeout=0.1"
    with connected(url) as holder, connected(url) as waiter:
        holder("DELETE FROM automl_workers")
        error = failing(waiter, "DELETE FROM automl_workers")
    check(error, Kind.TRANSIENT, "close it or use PostgreSQL")


def test_a_moved_file_is_named(sqlite_url, tmp_path):
    engine = create_engine(sqlite_url)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
        connection.exec_driver_sql("SELECT COUNT(*) FROM automl_workers").all()
        (tmp_path / "automl.db").rename(tmp_path / "elsewhere.db")
        error = failing(connection.exec_driver_sql, "DELETE FROM automl_workers")
    check(error, Kind.FATAL, "moved or deleted while it was open")


def test_a_read_only_file_is_named(sqlite_url):
    engine = create_engine(f"{sqlite_url.replace('///', '///file:')}?mode=ro&uri=true")
    with engine.connect() as connection:
        error = failing(connection.exec_driver_sql, "DELETE FROM automl_workers")
    check(error, Kind.FATAL, "make the file and its directory writable")


def test_a_damaged_file_is_named(sqlite_url, tmp_path):
    engine = create_engine(sqlite_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = DELETE")
    engine.dispose()
    file = tmp_path / "automl.db"
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with engine.connect() as connection:
        error = failing(connection.exec_driver_sql, "DELETE FROM automl_workers")
    check(error, Kind.FATAL, "restore a copy")


def test_a_text_that_is_too_long_is_the_trials_failure(sqlite_url):
    engine = create_engine(sqlite_url)
    with engine.connect() as connection:
        driven = connection.connection.driver_connection
        driven.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
        error = failing(connection.exec_driver_sql, "SELECT zeroblob(2000)")
    assert meaning(error).kind is Kind.OWN


# Values that servers cannot hold.
_KEY = "INSERT INTO automl_keys (id, `key`, `rank`, level, through, fingerprint) VALUES"
OWN = {
    "postgresql": (
        "SELECT 3000000000::integer",
        "INSERT INTO automl_functions (fingerprint) VALUES (repeat('x', 65))",
        "SELECT E'\\xff'::text",
        "SELECT 'x'::double precision",
    ),
    "mysql": (
        f"{_KEY} (1, 'k', 3000000000, 'L0', 'L0', 'f')",
        f"{_KEY} (1, REPEAT('x', 65), 0, 'L0', 'L0', 'f')",
        f"{_KEY} (1, x'ff', 0, 'L0', 'L0', 'f')",
        f"{_KEY} (1, 'k', 'x', 'L0', 'L0', 'f')",
    ),
}


def test_a_value_that_a_server_cannot_hold_is_the_trials_failure(server):
    for statement in OWN[make_url(server).get_backend_name()]:
        assert kind_of(server, statement) is Kind.OWN, statement


def test_every_table_maps_codes_to_meanings():
    for table in (sql_errors.POSTGRESQL, sql_errors.MYSQL, sql_errors.SQLITE):
        assert {type(found.kind) for found in table.values()} == {Kind}
    assert all(name.startswith("SQLITE_") and hasattr(sqlite3, name) for name in sql_errors.SQLITE)
