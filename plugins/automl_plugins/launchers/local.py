"""Local: workers as processes on this machine."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from automl import Launcher, UsageError, WorkerHandle, hookimpl


@dataclass(frozen=True)
class LocalWorker:
    """A worker process that this process started."""

    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self, timeout: float | None = None) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(
                f"worker process {self.process.pid} is still running after {timeout:g} s"
            ) from error


@dataclass(frozen=True)
class LocalLauncher(Launcher):
    """Starts each worker as a process in its own session.

    A terminal's Ctrl-C then only reaches the process that started them, which passes it on.
    """

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> WorkerHandle:
        """Start one worker; its standard error is appended to `log`.

        Raises:
            UsageError: The program or the log file cannot be opened.
        """
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as errors:
                return LocalWorker(_open(command, {**os.environ, **environment}, errors.fileno()))
        except OSError as error:
            raise UsageError(
                f"cannot start worker {command[0]}: {error.filename}: {error.strerror}"
            ) from error


def _open(
    command: Sequence[str], environment: Mapping[str, str], errors: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )


@hookimpl
def register_launchers() -> Mapping[str, Callable[..., Launcher]]:
    return {"local": LocalLauncher}
