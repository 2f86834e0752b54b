"""Runs a study from this process: a worker of its own, and others that a launcher starts."""

import logging
import os
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from automl.errors import Interrupted, StorageError, UsageError
from automl.protocols import Launcher, WorkerHandle
from automl.registry import Registry
from automl.stopping import Stop
from automl.studies import Parts, Study
from automl.trust import state_directory
from automl.worker import device_count, resolve_device, stopping_on_signals, work

_log = logging.getLogger("automl")
_GRACE_SECONDS = 30.0
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Started:
    """A worker that was started, and the file that holds what it said."""

    handle: WorkerHandle
    log: Path


@dataclass(frozen=True)
class Session:
    """How many workers run a study from here, on which devices, started by what."""

    study: Study
    parts: Parts
    registry: Registry
    launcher: Launcher
    workers: int = 1
    device: str = "auto"

    def run(self) -> None:
        """Work until the study has nothing left to do; the first Ctrl-C stops all workers.

        Raises:
            Interrupted: a signal asked to stop; every trial under way has been given back.
            StorageError: the database failed here.
        """
        stop = Stop()
        device = resolve_device(self.device)
        self._share_cores()
        with stopping_on_signals(stop):
            others: list[Started] = []
            try:
                for index in range(1, self.workers):
                    others.append(self._start(index))
                work(self.study, self.parts, self.registry, device, stop)
                _wait(others, stop)
            except KeyboardInterrupt:
                _end(others)
                raise Interrupted("interrupted") from None
            except BaseException:
                _interrupt(others)
                raise
        _warn_of_crashes(others)

    def _start(self, index: int) -> Started:
        device = resolve_device(self.device, index)
        command = [sys.executable, "-P", "-m", "automl", "worker", "--device", device]
        log = self._log_file(index)
        environment = {**self.study.storage.environment(), "OMP_NUM_THREADS": str(self._threads())}
        handle = self.launcher.start([*command, "--", self.study.name], environment, log)
        return Started(handle, log)

    def _log_file(self, index: int) -> Path:
        folder = state_directory() / "logs" / str(uuid.UUID(self.study.spec.uuid))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"cannot keep the workers' logs in {folder}: {error.strerror}; "
                "set AUTOML_STATE_DIR to a directory you can write"
            ) from error
        return folder / f"worker-{index}.log"

    def _share_cores(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and self.workers > 1:
            torch.set_num_threads(self._threads())

    def _threads(self) -> int:
        return max(1, (os.cpu_count() or 1) // self.workers)


def worker_count(asked: str) -> int:
    """How many workers `--workers` means: a number, or `auto` for one per GPU or two cores.

    Raises:
        UsageError: it is neither.
    """
    if asked == "auto":
        return device_count() or max(1, (os.cpu_count() or 1) // 2)
    if not asked.isdigit() or int(asked) < 1:
        raise UsageError(f"--workers: expected a number from 1 or auto, got {asked!r}")
    return int(asked)


def _wait(others: Sequence[Started], stop: Stop) -> None:
    while any(started.handle.poll() is None for started in others):
        if stop.wait(0.1):
            raise Interrupted("interrupted")


def _interrupt(others: Sequence[Started]) -> None:
    """Ask workers to stop at their next tick; end those that do not, or at a second Ctrl-C."""
    for started in others:
        started.handle.interrupt()
    try:
        slow = _running_after(others, _GRACE_SECONDS)
    except KeyboardInterrupt:
        slow = list(others)
    _end(slow)


def _end(others: list[Started]) -> None:
    """Have workers end at once, as a second Ctrl-C does."""
    end = time.monotonic() + _END_SECONDS
    while time.monotonic() < end and (others := [o for o in others if o.handle.poll() is None]):
        for started in others:
            started.handle.interrupt()
        others = _running_after(others, 0.5)
    for started in others:
        _log.warning("a worker does not stop; its trial will be taken over: %s", started.log)


def _running_after(others: Sequence[Started], seconds: float) -> list[Started]:
    end = time.monotonic() + seconds
    while (running := [o for o in others if o.handle.poll() is None]) and time.monotonic() < end:
        time.sleep(0.05)
    return running


def _warn_of_crashes(others: Sequence[Started]) -> None:
    for started in others:
        code = started.handle.poll()
        if code:
            said = started.log.read_text(errors="replace").strip() if started.log.exists() else ""
            last = said.splitlines()[-1] if said else "it said nothing"
            _log.warning("a worker ended with exit code %s: %s (%s)", code, last, started.log)
