"""Servers of a test's own: a PostgreSQL that can be restarted, and a relay that is far away."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

_USER = "postgres"


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server on a port of its own."""

    programs: Path
    data: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/postgres"

    def restart(self, mode: str) -> None:
        """Stop it, `fast` or `immediate` as in a crash, and start it again."""
        self.control("stop", "-m", mode)
        self.start()

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data}"
        )
        self.control("start", "-o", options, "-l", str(self.data / "server.log"))

    def control(self, verb: str, *more: str) -> None:
        _as_postgres([str(self.programs / "pg_ctl"), "-w", "-D", str(self.data), verb, *more])


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """A new server, gone afterwards; skips where PostgreSQL's programs are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    where = shutil.which("pg_ctl")
    if not found and where is None:
        pytest.skip("no pg_ctl here: install the PostgreSQL server to test a restart")
    programs = found[-1].parent if found else Path(str(where)).parent
    data = Path("/tmp") / f"automl-cluster-{os.getpid()}-{time.monotonic_ns()}"
    data.mkdir(mode=0o700)
    made = Cluster(programs, data, _free_port())
    try:
        if os.geteuid() == 0:
            shutil.chown(data, _USER, _USER)
        initdb = [str(programs / "initdb"), "-D", str(data), "-U", _USER, "-A", "trust", "-N"]
        _as_postgres(initdb)
        made.start()
        yield made
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            made.control("stop", "-m", "immediate")
        shutil.rmtree(data, ignore_errors=True)


def _as_postgres(command: list[str]) -> None:
    # PostgreSQL refuses to run as root.
    prefix = ["runuser", "-u", _USER, "--"] if os.geteuid() == 0 else []
    subprocess.run(
        [*prefix, *command],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


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


@dataclass
class Relay:
    """A way to a server on which each packet takes its time; url: the server behind it."""

    url: str
    target: tuple[str, int]
    latency: float
    _pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)

    def cut(self) -> None:
        """Cut all connections that there are; new ones can be made."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self.target)
                for end in (near, far):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs.append((near, far))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                time.sleep(self.latency)
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(url: str, latency: float = 0.0) -> Iterator[Relay]:
    """A relay to the server of this URL, closed afterwards."""
    parsed = make_url(url)
    listener = socket.create_server(("127.0.0.1", 0))
    near = parsed.set(host="127.0.0.1", port=listener.getsockname()[1])
    target = (parsed.host or "127.0.0.1", parsed.port or 5432)
    made = Relay(near.render_as_string(hide_password=False), target, latency)
    threading.Thread(target=made.serve, args=(listener,), daemon=True).start()
    try:
        yield made
    finally:
        # Closing alone would not wake who waits for the next connection.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        made.cut()
