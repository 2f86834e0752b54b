"""The worker process under a scheduler's own: it dies with that, and logs where it can."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# PR_SET_PDEATHSIG is 1: whoever starts a worker may be killed, and must not leave it behind.
# The thread that starts it may hold signals back, which a worker inherits and must not.
# SIGUSR2, by which Slurm may warn each process of a job, would end one that does not expect it.
_BOUND = """
import os, signal, sys
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
except (AttributeError, ImportError, OSError):
    pass
os.execvpe(sys.argv[1], sys.argv[1:], os.environ)
"""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_POLL_SECONDS = 0.05


def open_child(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path
) -> subprocess.Popen[bytes]:
    """Start a worker that is asked to stop when this process dies.

    What it says goes to `log` where that is there already, as it is on a shared disk; else to
    this process's own standard error. folder: where it works, if there is such a folder here.
    """
    # A machine of another make has its Python elsewhere.
    program = command[0] if Path(command[0]).exists() else sys.executable
    with _errors(log) as errors:
        return subprocess.Popen(
            [sys.executable, "-c", _BOUND, program, *command[1:]],
            env={**os.environ, **environment},
            cwd=folder if folder.is_dir() else None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )


def thread_limits(cpus: float, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep a worker to its CPUs, but for those the user has set."""
    known = {**os.environ, **environment}
    return {name: str(max(1, int(cpus))) for name in _THREADS if not known.get(name)}


def wait_by(poll: Callable[[], int | None], timeout: float | None, worker: str) -> int:
    """Ask for a worker's exit code until there is one.

    Raises:
        TimeoutError: there is none after so many seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while (code := poll()) is None:
        if end is not None and time.monotonic() >= end:
            raise TimeoutError(f"{worker} still runs after {timeout:g} s")
        time.sleep(_POLL_SECONDS)
    return code


def note(log: Path, line: str) -> None:
    """Add a line to a worker's log."""
    with contextlib.suppress(OSError), log.open("a") as file:
        file.write(f"{line}\n")


def make_log(log: Path) -> None:
    """Make a worker's log, so that others see whether they share its disk."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()


@contextlib.contextmanager
def _errors(log: Path) -> Iterator[int | None]:
    if not log.exists():
        yield None
        return
    with log.open("ab") as file:
        yield file.fileno()
