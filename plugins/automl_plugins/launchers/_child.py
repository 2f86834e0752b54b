"""The worker process below a scheduler's own process, which it never outlives."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# PR_SET_PDEATHSIG is 1: a worker must not outlive its parent, which may be killed.
# A worker inherits signals that the parent's thread blocks, so unblock them.
# Slurm may warn each process of a job with SIGUSR2, which would end the worker by default.
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

    Args:
        command: The worker's command line.
        environment: Variables to add to its environment.
        log: The file for its standard error. If the file does not exist on this machine, because
            the disk is not shared, this process's standard error is used.
        folder: Its working directory, if it exists on this machine.
    """
    # Another machine may have its Python in another place.
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
    """Return variables that limit a worker's threads to its CPUs, unless the user set them."""
    known = {**os.environ, **environment}
    return {name: str(max(1, int(cpus))) for name in _THREADS if not known.get(name)}


def wait_by(poll: Callable[[], int | None], timeout: float | None, worker: str) -> int:
    """Poll for a worker's exit code until there is one.

    Args:
        poll: Returns the exit code, or None.
        timeout: In seconds; None waits without limit.
        worker: The worker's name, for the error message.

    Raises:
        TimeoutError: The worker is still running.
    """
    end = None if timeout is None else time.monotonic() + timeout
    while (code := poll()) is None:
        if end is not None and time.monotonic() >= end:
            raise TimeoutError(f"{worker} is still running after {timeout:g} s")
        time.sleep(_POLL_SECONDS)
    return code


def note(log: Path, line: str) -> None:
    """Append a line to a worker's log."""
    with contextlib.suppress(OSError), log.open("a") as file:
        file.write(f"{line}\n")


def make_log(log: Path) -> None:
    """Create a worker's log, so that other machines can check whether they share its disk."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()


@contextlib.contextmanager
def _errors(log: Path) -> Iterator[int | None]:
    if not log.exists():
        yield None
        return
    with log.open("ab") as file:
        yield file.fileno()
