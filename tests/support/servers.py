"""Servers that a test may break: a PostgreSQL server, a relay that cuts connections, a proxy."""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import children
import optuna
import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.engine import URL

from automl.storage.storage import Storage

_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# PostgreSQL.
@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server for one test."""

    programs: Path
    directory: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        self._control("start", "-l", str(self.directory / "log"))

    def stop(self, mode: str = "fast") -> None:
        self._control("stop", "-m", mode)

    def restart(self, mode: str = "fast", pause: float = 0.0) -> None:
        """Restart as `pg_ctl restart -m MODE` does; mode `immediate` is a crash."""
        self.stop(mode)
        time.sleep(pause)
        self.start()

    def _control(self, verb: str, *arguments: str) -> None:
        as_postgres(
            str(self.programs / "pg_ctl"),
            verb,
            "-D",
            str(self.directory / "data"),
            "-w",
            *arguments,
        )


def as_postgres(*command: str) -> None:
    """PostgreSQL refuses to run as root."""
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*user, *command], cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}"


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Run a PostgreSQL server; skip the test if its programs are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    on_path = shutil.which("pg_ctl")
    if not found and on_path is None:
        pytest.skip("no PostgreSQL programs (pg_ctl) here")
    programs = (found[-1] if found else Path(on_path or "")).parent
    with tempfile.TemporaryDirectory(prefix="automl-cluster-") as name:
        directory, port = Path(name), free_port()
        if os.getuid() == 0:
            shutil.chown(directory, "postgres")
        as_postgres(
            *(str(programs / "initdb"), "-D", str(directory / "data")),
            *("-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"),
        )
        settings = f"port = {port}\nunix_socket_directories = '{directory}'\nfsync = off\n"
        with (directory / "data" / "postgresql.conf").open("a") as file:
            file.write(settings + "listen_addresses = '127.0.0.1'\n")
        own = Cluster(programs, directory, port)
        own.start()
        try:
            yield own
        finally:
            with suppress(AssertionError):  # It may be stopped already.
                own.stop("immediate")


def cut_connections(url: str) -> None:
    """End every connection to a PostgreSQL database, whatever it is doing."""
    parsed = make_url(url)
    plain = parsed.set(drivername="postgresql", database="postgres")
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = %s AND pid <> pg_backend_pid()",
            (parsed.database,),
        )


# A relay.
@dataclass
class Relay:
    """Passes bytes between clients and a server, with delays or losses.

    Attributes:
        host: The server's host.
        port: The server's port.
        own_host: The address at which the relay listens.
        seconds: The delay of each piece.
        cut_after: Decides for a piece from a client whether to cut the connection after it; the
            piece still reaches the server, but the client gets no answer.
        cuts: How many connections were cut by `cut_after`.
        refuses: Whether to refuse new connections.
        swallows: Whether to accept and drop everything, without closing connections.
    """

    host: str
    port: int
    own_host: str = "127.0.0.1"
    seconds: float = 0.0
    cut_after: Callable[[bytes], bool] = lambda sent: False
    cuts: int = 0
    refuses: bool = False
    swallows: bool = False
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server((self.own_host, 0))
        self.own_port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def before(self, url: URL) -> str:
        """The URL of a database through this relay."""
        own = url.set(host=self.own_host, port=self.own_port)
        return own.render_as_string(hide_password=False)

    def cut_all(self) -> None:
        """Cut all connections."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _shut(*pair)

    def close(self) -> None:
        self._listener.close()
        self.cut_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                if self.refuses:
                    client.close()
                    continue
                server = socket.create_connection((self.host, self.port))
            except OSError:
                return
            self._pairs.append((client, server))
            for source, target, looks in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pass_on, args=(source, target, looks), daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, looks: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                time.sleep(self.seconds)
                if self.swallows:
                    continue
                cuts = looks and self.cut_after(piece)
                if cuts:
                    # First the client's side, so that it cannot hear the answer.
                    self.cuts += 1
                    _shut(source)
                target.sendall(piece)
                if cuts:
                    time.sleep(0.1)  # The server has executed it by then.
                    break
        _shut(source, target)


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            one.close()


@contextmanager
def relay(url: URL, own_host: str = "127.0.0.1") -> Iterator[Relay]:
    """Run a relay in front of the server of a URL."""
    made = Relay(url.host or "127.0.0.1", url.port or 5432, own_host)
    try:
        yield made
    finally:
        made.close()


# Optuna's gRPC proxy.
def serve(url: str, port: int) -> None:
    optuna.storages.run_grpc_proxy_server(Storage(url).trials, host="127.0.0.1", port=port)


class Proxy:
    """Optuna's gRPC proxy in front of a database, in a separate process."""

    def __init__(self, behind: str) -> None:
        self._behind, self._port = behind, free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._process = children.CONTEXT.Process(target=serve, args=(self._behind, self._port))
        self._process.start()
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return
            assert self._process.is_alive(), "the proxy has ended"
            time.sleep(0.05)
        raise AssertionError("the proxy does not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def proxy(behind: str) -> Iterator[Proxy]:
    """Run a proxy in front of a database."""
    made = Proxy(behind)
    try:
        yield made
    finally:
        made.kill()
