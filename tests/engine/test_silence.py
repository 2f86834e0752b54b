"""A server that accepts packets but never answers is noticed, and workers wait for it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import servers
import test_elsewhere
import test_kill
from databases import database, redis_journal
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from automl import StorageError
from automl.analysis.doctor import Doctor
from automl.ledger.ledger import Ledger
from automl.ledger.schema import exclusive_transaction
from automl.ledger.values import Worker
from automl.storage.storage import Storage
from automl.study.study import open_study

SHORT = 2
"""Seconds that a server may be silent, instead of 70."""
NOTICED = 90.0
"""Seconds, including the ten of another attempt to connect."""


class Hole:
    """A database behind a relay that can become a black hole."""

    def __init__(self, plain: str, relay: servers.Relay, limit: str) -> None:
        self.plain, self.relay = plain, relay
        self.url = relay.before(make_url(plain).update_query_string(limit))

    def storage(self) -> tuple[Storage, Ledger]:
        storage = Storage(self.url)
        _ = storage.trials
        ledger = Ledger(storage.engine, "u")
        ledger.open_study(None, None, None)
        return storage, ledger


@pytest.fixture(params=["postgresql", "mysql"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def hole(request, kind, tmp_path) -> Iterator[Hole]:
    limit = getattr(request, "param", f"read_timeout={SHORT}")
    with ExitStack() as stack:
        plain = stack.enter_context(database(kind, tmp_path))
        relay = stack.enter_context(servers.relay(make_url(plain)))
        yield Hole(plain, relay, limit)


def test_a_silent_server_is_noticed(hole):
    storage, ledger = hole.storage()
    hole.relay.swallows = True
    for call in (lambda: ledger.enter(Worker("a")), storage.trials.get_all_studies):
        began = time.monotonic()
        with pytest.raises(StorageError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 10 * SHORT
    storage.engine.dispose()


def test_a_waiting_worker_continues_when_a_silent_server_answers_again(hole):
    storage, ledger = hole.storage()
    hole.relay.swallows = True
    with storage.outage_retry.enabled(threading.Event(), 60.0):
        threading.Timer(2 * SHORT, lambda: setattr(hole.relay, "swallows", False)).start()
        ledger.enter(Worker("a"))
        assert ledger.reserve(Worker("a")) is not None
    storage.engine.dispose()


def test_a_slow_statement_is_not_silence(kind, tmp_path):
    """The limit applies to each silence, not to the whole statement."""
    statement = {
        "postgresql": "SELECT pg_sleep(0.5), n FROM generate_series(1, 6) AS n",
        "mysql": "SELECT SLEEP(0.5), n FROM (SELECT 1 AS n UNION SELECT 2) AS two",
    }
    with database(kind, tmp_path) as plain:
        url = make_url(plain).update_query_string("read_timeout=10").render_as_string(False)
        engine = Storage(url).engine
        with engine.connect() as connection:
            assert len(connection.exec_driver_sql(statement[kind]).all()) > 1
        engine.dispose()


def test_creating_tables_has_no_time_limit(kind, tmp_path):
    sleep = {"postgresql": "pg_sleep", "mysql": "SLEEP"}[kind]
    with database(kind, tmp_path) as plain:
        url = make_url(plain).update_query_string("read_timeout=1").render_as_string(False)
        engine = Storage(url).engine
        with exclusive_transaction(engine) as connection:
            assert connection.exec_driver_sql(f"SELECT {sleep}(2.5)").all()
        with engine.connect() as connection, pytest.raises(DBAPIError):
            connection.exec_driver_sql(f"SELECT {sleep}(2.5)")
        engine.dispose()


@pytest.mark.timeout(60)
def test_a_server_that_never_greets_is_noticed_like_one_that_accepts_no_connection(kind):
    user = {"postgresql": "postgres", "mysql": "root"}[kind]
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        limits = "connect_timeout=2&read_timeout=1000"
        with pytest.raises(StorageError):
            _ = Storage(f"{kind}://{user}@{address}/x?{limits}").engine


def test_a_silent_redis_is_noticed():
    with redis_journal() as plain, servers.relay(make_url(plain)) as relay:
        url = relay.before(make_url(plain).update_query_string(f"socket_timeout={SHORT}"))
        trials = Storage(url, "sqlite:///unused.db", trusted=True)._backend.open(True)
        relay.swallows = True
        with pytest.raises(Exception, match="Timeout"):
            trials.get_all_studies()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hole", [""], indirect=True)
def test_a_search_outlives_a_black_hole(hole, kind, tmp_path, capsys):
    """With the default limits, it is noticed within 90 s and no trial is lost."""
    storage, ledger = hole.storage()
    hole.relay.swallows = True
    began = time.monotonic()
    with pytest.raises(StorageError):
        ledger.enter(Worker("a"))
    noticed = time.monotonic() - began
    hole.relay.swallows = False
    storage.engine.dispose()
    process = test_elsewhere.search(Storage(hole.url), log := tmp_path / "log", seconds=0.6)
    try:
        test_kill.wait_for(log, process)
        hole.relay.swallows = True
        time.sleep(30)
        hole.relay.swallows = False
        _, stderr = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            test_kill.kill(process)
    assert process.returncode == 0, stderr
    study = open_study(Storage(hole.plain), "s")
    assert study.views.counts().complete == test_kill.TRIALS
    assert Doctor(study).findings() == []
    with capsys.disabled():
        print(f"\nnoticed after {noticed:.1f} s")
    assert noticed < NOTICED
