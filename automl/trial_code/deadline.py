"""Holds a trial's code to its time limit, also where it calls nothing of the engine's.

At the limit the code gets a TimeLimitError amid whatever it does, and again after a margin. What
that does not reach (native code, code that catches everything) ends with its process.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from automl.errors import DeviceLostError, TimeLimitError
from automl.storable import require_amount
from automl.trial_code import boundary, time_guard
from automl.trial_code.own_files import OwnFiles

NEVER = float("inf")
_SHARE = 0.1
_SHORTEST, _LONGEST = 2.0, 30.0
_MARGINS = 2
"""So many margins after its limit, code that nothing else stops ends with its process."""
_SOON = 0.01
_CLOSED = "its code closed files of the engine's, such as its connections to the database"
_IMPORT_SECONDS = 60.0
"""So much more time a trial has that is loading a library at its limit."""


@dataclass(frozen=True)
class TimeLimits:
    """How long a trial, and a step of it from report to report, may take; None is without limit.

    Raises:
        UsageError: a limit that is not positive, or more than systems take.
    """

    trial: float | None = None
    epoch: float | None = None

    def __post_init__(self) -> None:
        for name in ("trial", "epoch"):
            if (value := getattr(self, name)) is not None:
                require_amount(f"--{name}-timeout", value)


class Deadline:
    """The time limit of the trial under way.

    Outside of training, each call of a trial's code (the space, its costs) has the limit of a
    trial to itself, or a little more than that of an epoch; waiting for the database is free.
    Python can interrupt the main thread alone, which a worker's always is; in another thread of a
    caller's, ticks have to do.

    Whatever the limit, it ends this process when that code has closed files that the engine needs.

    alone: nothing else sees that this process ends, so that a trial which ends it needs a line.
    files: the database's files.
    """

    def __init__(self, limits: TimeLimits, alone: bool = False, files: Iterable[Path] = ()) -> None:
        self._alone, self._files = alone, tuple(files)
        shortest = min(limits.trial or NEVER, limits.epoch or NEVER)
        self.margin = min(max(_SHARE * shortest, _SHORTEST), _LONGEST)
        """How long code may take to obey before more is done, in seconds."""
        self._proposing = limits.trial or (limits.epoch or NEVER) + self.margin
        self._due = self._until = NEVER
        self._waited, self._waits = 0.0, False
        self._paused: float | None = None
        self._message, self._note, self._trial, self._again = "", Path(), "", ""
        self._pid = os.getpid()
        self._guard: _Guard | None = None
        self._active = self._armed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold what runs in this thread to the limit, where there is one."""
        main = threading.current_thread() is threading.main_thread()
        limited = self._proposing != NEVER and main and hasattr(signal, "setitimer")
        self._pid = os.getpid()
        with ExitStack() as stack:
            own = stack.enter_context(closing(OwnFiles(self._files)))
            boundary.set_return_check(partial(self._require_files, own))
            stack.callback(boundary.set_return_check, None)
            if limited or self._alone:
                self._guard = stack.enter_context(_guard())
            if limited and self._guard is not None:
                stack.enter_context(self._guard.dumping())
            if limited:
                stack.enter_context(self._ringing())
                boundary.set_watch(self)
                stack.callback(boundary.set_watch, None)
            yield

    def begin_trial(self, trial: str, again: str, note: Path) -> None:
        """Take up a trial; it may be the one whose process has to be ended.

        again: the command that goes on then. note: a file to say in why.
        """
        self._trial, self._again, self._note, self._active = trial, again, note, True
        self.until(NEVER, "")
        self._part("during")

    def end_trial(self) -> None:
        """Hold nothing to a limit any more."""
        self._active = False
        self.end()
        self._part("after")

    def _part(self, when: str) -> None:
        """Have a line written if this process ends before it has signed off."""
        if self._alone and self._guard is not None and os.getpid() == self._pid:
            how = f"process {self._pid} ended {when} {self._trial} without signing off"
            self._guard.part(f"{how}; go on with: {self._again}")

    def until(self, due: float, message: str) -> None:
        """Let code of the trial's run until then, by the monotonic clock; message: what if not.

        due: NEVER gives each call the whole limit again.
        """
        self._due, self._message = due, message

    def grant(self) -> None:
        """Let code that cleans up run for a margin more, if its time is over."""
        self._due = max(self._due, time.monotonic() + self.margin)

    def clock(self) -> float:
        """The monotonic clock, less the time that was free."""
        return time.monotonic() - self._waited

    def at(self, clock: float) -> float:
        """When this clock shows so much, if no more is free, by the monotonic one."""
        return clock + self._waited

    @contextmanager
    def free(self) -> Iterator[None]:
        """Count against no limit what passes in here, as in waiting for the database."""
        if self._waits:
            yield
            return
        began, self._waits = time.monotonic(), True
        try:
            yield
        finally:
            self._waits = False
            self._put_off(time.monotonic() - began)

    def _put_off(self, seconds: float) -> None:
        self._waited += seconds
        self._due += seconds
        self._until += seconds
        # Less is made up for when the alarm comes too early.
        if seconds > _SOON and self._armed:
            self.begin()

    # What the boundary tells.
    def check(self) -> None:
        now = time.monotonic()
        if self._active and now > self._due:
            raise TimeLimitError(self._message)
        self._until = now + self._proposing if self._due == NEVER else self._due
        self._paused = None

    def begin(self) -> None:
        if not self._active or os.getpid() != self._pid:
            return
        now = time.monotonic()
        paused, self._paused = self._paused, None
        if paused is not None and not self._waits:
            self._put_off(now - paused)
        self._armed = True
        # A trial before may have replaced the handler, or kept the signal from it.
        signal.signal(signal.SIGALRM, self._ring)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        left = max(self._until - now, _SOON)
        signal.setitimer(signal.ITIMER_REAL, left, self.margin)
        self._arm(left)

    def end(self) -> None:
        if self._armed and os.getpid() == self._pid:
            self._armed, self._paused = False, time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if self._guard is not None:
                self._guard.disarm()

    def _arm(self, left: float) -> None:
        if self._guard is not None:
            line = f"{self._trial}: {self._said}, and nothing else stops it: {self._ended}"
            self._guard.arm(left + _MARGINS * self.margin, self._said, line, self._note)

    def _require_files(self, own: OwnFiles) -> None:
        """End this process if a trial's code closed files of it.

        Nothing can be settled here any more: calls of the database may wait for minutes, or write
        to a file that the code has opened since.
        """
        if os.getpid() != self._pid or not own.are_lost():
            return
        stack = "".join(["Traceback (most recent call last):\n", *traceback.format_stack()])
        time_guard.leave_note(self._note, {"why": _CLOSED, "stack": stack, "late": False})
        if self._guard is not None:
            self._guard.close()
        with suppress(BaseException):  # a trial may have replaced it
            sys.stdout.flush()
        with suppress(OSError):
            os.write(2, _shown(f"{self._trial}: {_CLOSED}: {self._ended}").encode() + b"\n")
        os._exit(DeviceLostError.exit_code)

    @property
    def _ended(self) -> str:
        return f"process {self._pid} is ended; go on with: {self._again}"

    @property
    def _said(self) -> str:
        waited = f"its code did not return within {self._proposing:g} s"
        return self._message or waited

    @contextmanager
    def _ringing(self) -> Iterator[None]:
        """Take SIGALRM; a timer of the caller's own goes on afterwards."""
        handler = signal.signal(signal.SIGALRM, self._ring)
        began, (left, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, 0.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            # What was set by other means than Python's cannot be set again.
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            if left:
                rest = max(left - (time.monotonic() - began), _SOON)
                signal.setitimer(signal.ITIMER_REAL, rest, interval)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if not boundary.is_in_trial_code() or os.getpid() != self._pid:
            return
        if _imports(frame) and time.monotonic() < self._until + _IMPORT_SECONDS:
            self._arm(self.margin)
            return
        if (left := self._until - time.monotonic()) > _SOON:
            signal.setitimer(signal.ITIMER_REAL, left, self.margin)
            return
        raise boundary.uncatchable(TimeLimitError(self._said))


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being loaded: half a library would fail every trial to come."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


class _Guard:
    """The process that ends this one."""

    def __init__(self) -> None:
        # The guard reads where this process was from a file that both have open.
        self._stack = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the guard runs
        number = self._stack.fileno()
        # -I, -S: nothing but the standard library, and nothing that lies about.
        command = [sys.executable, "-I", "-S", str(Path(time_guard.__file__)), str(number)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=[number],
            )
        except OSError:
            self._stack.close()
            raise

    @contextmanager
    def dumping(self) -> Iterator[None]:
        """Have this process write down where it is when the guard asks."""
        assert time_guard.STACK_SIGNAL is not None
        faulthandler.register(time_guard.STACK_SIGNAL, file=self._stack, all_threads=False)
        try:
            yield
        finally:
            faulthandler.unregister(time_guard.STACK_SIGNAL)

    def arm(self, seconds: float, why: str, line: str, note: Path) -> None:
        """End this process after so many seconds, with a line for people and a note."""
        self._send({"seconds": seconds, "why": why, "line": _shown(line), "note": str(note)})

    def part(self, line: str) -> None:
        """Write this line once this process has ended, unless it closes the guard before."""
        self._send({"parting": _shown(line)})

    def disarm(self) -> None:
        """End nothing until it is armed again."""
        self._send({})

    def close(self) -> None:
        # Not by the end of its input, which a process that a trial forked may hold open.
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        with suppress(OSError):
            self._stack.close()

    def _send(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None
        # One that a trial has ended guards no more.
        with suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")


def _shown(line: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in line)


@contextmanager
def _guard() -> Iterator[_Guard | None]:
    """A guard, where the system starts one."""
    if time_guard.STACK_SIGNAL is None or not hasattr(faulthandler, "register"):
        yield None
        return
    try:
        guard = _Guard()
    except OSError:
        yield None
        return
    try:
        yield guard
    finally:
        guard.close()
