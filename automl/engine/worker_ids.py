"""Which process a worker is, so that others on its machine can tell that it is dead."""

import os
import socket
import uuid
from pathlib import Path

MARK = "AUTOML_WORKER"
"""Set for a worker that a search starts: the last part of its name, by which it is found again."""
_PROC = Path("/proc")


def new_mark() -> str:
    """A part of a worker's name that no other worker has or will have."""
    return uuid.uuid4().hex[:16]


def is_supervised() -> bool:
    """Whether a search started this process as a worker and sees how it ends, until it is named."""
    return MARK in os.environ


def this_worker() -> str:
    """A name no other worker has or will have: host, boot, process, its start, its mark."""
    start = _start_of(os.getpid()) or "0"
    # Taken out, so that no other process that is started from here goes by it.
    mark = os.environ.pop(MARK, "") or new_mark()
    return ":".join((_host(), _boot(), str(os.getpid()), start, mark))


def is_dead(worker: str) -> bool:
    """Whether a worker is known to be gone; False where this process cannot tell.

    Only one of this very start of this machine, and of this namespace of processes, can be
    known; of others that merely share the host's name, their lease decides.
    """
    try:
        host, boot, pid, start, _ = worker.rsplit(":", 4)
    except ValueError:
        return False
    if (host, boot) != (_host(), _boot()) or not boot or start == "0":
        return False
    return _gone(int(pid)) or _start_of(int(pid)) not in (start, None)


def host_and_pid(worker: str) -> str:
    """A worker's name, short enough for people."""
    host, _, pid, *_ = [*worker.rsplit(":", 4), "", ""]
    return f"{host}:{pid}"


def _host() -> str:
    return socket.gethostname()


def _boot() -> str:
    """Changes at every start of the machine; a container's own namespace counts as a machine."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = os.stat(_PROC / "self/ns/pid").st_ino  # noqa: PTH116 - follows the link on purpose
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
    """A process's start in clock ticks since boot; "" of a zombie, None where unreadable."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]
