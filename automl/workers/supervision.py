"""Supervises a search's workers: those that die are restarted."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from automl.errors import DeviceLostError, Interrupted, UsageError, first_line
from automl.ledger.values import LostWorker
from automl.plugin.protocols import WorkerHandle

_log = logging.getLogger("automl")

QUICK_SECONDS = 10.0
"""A worker that dies within this many seconds of its start may never have worked."""
MAX_DEATHS = 3
"""A worker is not restarted after this many deaths in a row without progress.

A death counts if it came quickly, or if the study made no progress meanwhile. The time alone says
little, because a scheduler may let a job wait.
"""
LOST = -1
"""Stands for the exit code of a worker whose launcher no longer knows it."""
_EXPLAINED = (1, UsageError.exit_code, Interrupted.exit_code)
"""Exit codes of a worker that has logged why it ended, provided that it signed off."""
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 30.0
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Started:
    """A worker that was started.

    Attributes:
        handle: The launcher's handle on it.
        log: The file with its output.
        mark: The part of its name by which the ledger knows it.
    """

    handle: WorkerHandle
    log: Path
    mark: str = ""

    def last_line(self) -> str:
        """Return the last line of its output."""
        try:
            output = self.log.read_text(errors="replace").strip()
        except OSError:
            output = ""
        return output.splitlines()[-1] if output else "it wrote no output"


@dataclass
class _Supervised:
    """One of a search's workers, with all its restarts.

    Attributes:
        started: The process that runs now, or ran last.
        progress: The study's progress when it started.
        since: When it started, by the monotonic clock.
        deaths: How many processes in a row have died without progress.
        code: The exit code of the last process; None while it runs.
        abandoned: Whether it will not be restarted.
    """

    started: Started
    progress: int | None = None
    since: float = field(default_factory=time.monotonic)
    deaths: int = 0
    code: int | None = None
    abandoned: bool = False


@dataclass
class Supervisor:
    """Watches the workers that this process started, in a thread of its own.

    Attributes:
        start: Starts the worker of an index.
        wanted: Returns whether there is work for a new worker.
        progress: Returns a number that grows while the study makes progress; None if unknown.
        left: Returns what a worker left behind without signing off; None if it signed off, or if
            unknown.
    """

    start: Callable[[int], Started]
    wanted: Callable[[], bool]
    progress: Callable[[], int | None] = lambda: None
    left: Callable[[Started], LostWorker | None] = lambda started: None

    def __post_init__(self) -> None:
        self._workers: dict[int, _Supervised] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def watch(self) -> None:
        """Start to restart workers that die."""
        self._thread.start()

    def add(self, index: int) -> None:
        """Start the worker of that index.

        Raises:
            UsageError: The launcher cannot start it.
        """
        with self._lock:
            self._workers[index] = _Supervised(self.start(index), self.progress())

    def wait(self, stop: threading.Event) -> None:
        """Wait until every worker has ended.

        Raises:
            Interrupted: `stop` was set.
        """
        while any(worker.code is None for worker in self._workers.values()):
            if stop.wait(0.1):
                raise Interrupted("interrupted")

    def interrupt(self) -> None:
        """Ask workers to stop at their next tick.

        Those that do not stop in time are ended, and all of them at a second Ctrl-C.
        """
        others = self._running()
        try:
            self.close()
            others = self._running()
            for started in others:
                started.handle.interrupt()
            slow = _running_after(others, _GRACE_SECONDS)
        except KeyboardInterrupt:
            slow = others
        _end(slow)

    def end(self) -> None:
        """End all workers at once, as a second Ctrl-C does."""
        self.close()
        _end(self._running())

    def close(self) -> None:
        """Restart no worker from now on."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def completed(self) -> bool:
        """Return whether a worker ended because nothing was left to do."""
        return any(worker.code == 0 for worker in self._workers.values())

    def warn_of_crashes(self) -> None:
        """Log how each failed worker ended, unless that was logged before."""
        for worker in self._workers.values():
            if worker.code and not worker.abandoned:
                log, line = worker.started.log, worker.started.last_line()
                _log.warning("a worker ended with exit code %s: %s (%s)", worker.code, line, log)

    def _running(self) -> list[Started]:
        return [worker.started for worker in self._workers.values() if worker.code is None]

    def _run(self) -> None:
        while not self._closing.wait(_POLL_SECONDS):
            with self._lock:
                for index, worker in list(self._workers.items()):
                    if worker.code is None:
                        self._check_safely(index, worker)

    def _check_safely(self, index: int, worker: _Supervised) -> None:
        """Check on a worker; an error must not keep the others from being checked."""
        try:
            self._check(index, worker)
        except Exception as error:
            worker.abandoned, worker.code = True, LOST
            _log.warning("giving up on worker: %s: %s", type(error).__name__, first_line(error))

    def _check(self, index: int, worker: _Supervised) -> None:
        code = _exit_code(worker.started)
        if code is None:
            return
        quick = time.monotonic() - worker.since < QUICK_SECONDS
        known = worker.progress is not None
        fruitless = quick or (known and self.progress() == worker.progress)
        worker.deaths = worker.deaths + 1 if fruitless else 0
        left = self.left(worker.started)
        if _died(code, left) and self.wanted():
            self._restart(index, worker, code, left)
        else:
            worker.code = code

    def _restart(self, index: int, worker: _Supervised, code: int, left: LostWorker | None) -> None:
        how, log, line = _death(code), worker.started.log, worker.started.last_line()
        if worker.deaths >= MAX_DEATHS:
            worker.abandoned, worker.code = True, code
            _log.warning(
                "giving up on worker: it %s, %d times in a row without progress: %s (%s)",
                how,
                MAX_DEATHS,
                line,
                log,
            )
            return
        try:
            worker.started, worker.since = self.start(index), time.monotonic()
            worker.progress = self.progress()
        except Exception as error:
            worker.abandoned, worker.code = True, code
            _log.warning("a worker %s and cannot be restarted: %s", how, error)
            return
        trial = "" if left is None or left.number is None else f" after trial {left.number}"
        _log.warning("a worker %s and is restarted%s: %s (%s)", how, trial, line, log)


def _exit_code(started: Started) -> int | None:
    try:
        return started.handle.poll()
    except Exception as error:
        # Any error of a launcher's own library: a worker without a known state is lost.
        _log.warning("a launcher does not know its worker's state: %s (%s)", error, started.log)
        return LOST


def _died(code: int, left: LostWorker | None) -> bool:
    """Return whether a worker ended unexpectedly, whatever exit code a trial ended it with.

    A worker that ends on purpose signs off first. One that is done, with code 0, needs no check:
    nothing is left to do, so no other is wanted.
    """
    return left is not None or code not in _EXPLAINED


def _death(code: int) -> str:
    """Describe how a worker died."""
    if code == DeviceLostError.exit_code:
        return "could not go on"
    if code == LOST:
        return "was lost"
    if code < 0 or (128 < code < 192 and code != Interrupted.exit_code):
        # A shell adds 128 to the signal's number.
        return f"was killed by signal {-code if code < 0 else code - 128}"
    return f"ended with exit code {code} without signing off"


def _end(others: list[Started]) -> None:
    end = time.monotonic() + _END_SECONDS
    while time.monotonic() < end and (others := _alive(others)):
        for started in others:
            started.handle.interrupt()
        others = _running_after(others, 0.5)
    for started in others:
        _log.warning(
            "a worker does not stop; another one will take over its trial: %s", started.log
        )


def _running_after(others: list[Started], seconds: float) -> list[Started]:
    end = time.monotonic() + seconds
    while (running := _alive(others)) and time.monotonic() < end:
        time.sleep(0.05)
    return running


def _alive(others: list[Started]) -> list[Started]:
    return [started for started in others if started.handle.poll() is None]
