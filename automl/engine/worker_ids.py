"""Names of workers, from which other processes on the machine can tell that one is dead."""

import os
import socket
import uuid
from pathlib import Path

MARK = "AUTOML_WORKER"
"""The environment variable with the last part of a worker's name, set by its search."""
_PROC = Path("/proc")


def new_mark() -> str:
    """Return a new, unique part of a worker's name."""
    return uuid.uuid4().hex[:16]


def is_supervised() -> bool:
    """Return whether a search started this process as a worker; call it before `this_worker`."""
    return MARK in os.environ


def this_worker() -> str:
    """Return a unique name for this process: host, boot, process id, start time and mark."""
    start = _start_of(os.getpid()) or "0"
    # Removed, so that no child process uses the same name.
    mark = os.environ.pop(MARK, "") or new_mark()
    return ":".join((_host(), _boot(), str(os.getpid()), start, mark))


def is_dead(worker: str) -> bool:
    """Return whether a worker is known to be dead; False if unknown.

    Only the workers of this machine since its last boot, and of this process namespace, can be
    known. Others may share the host's name, so only their lease shows that they are dead.
    """
    try:
        host, boot, pid, start, _ = worker.rsplit(":", 4)
    except ValueError:
        return False
    if (host, boot) != (_host(), _boot()) or not boot or start == "0":
        return False
    return _gone(int(pid)) or _start_of(int(pid)) not in (start, None)


def host_and_pid(worker: str) -> str:
    """Shorten a worker's name for people."""
    host, _, pid, *_ = [*worker.rsplit(":", 4), "", ""]
    return f"{host}:{pid}"


def _host() -> str:
    return socket.gethostname()


def _boot() -> str:
    """An id of the machine's last boot; a container with its own namespace counts as a machine."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = os.stat(_PROC / "self/ns/pid").st_ino  # noqa: PTH116 - must follow the link
        return f"{boot[:13]}-{space}"
    except OSError:
        return ""


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _start_of(pid: int) -> str | None:
    """A process's start in clock ticks since boot; "" for a zombie, None if unknown."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
