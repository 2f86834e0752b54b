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
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from automl import boundary, time_guard
from automl.errors import TimeLimitError
from automl.spec import TimeLimits

NEVER = float("inf")
_SHARE = 0.1
_SHORTEST, _LONGEST = 2.0, 30.0
_MARGINS = 2
"""So many margins after its limit, code that nothing else stops ends with its process."""
_SOON = 0.01
_STDERR = 2


class Deadline:
    """The time limit of the trial under way.

    Outside of training, each call of a trial's code (the space, its costs) has the whole limit
    to itself. The main thread alone can be interrupted; in another, ticks and the process's end
    have to do.
    """

    def __init__(self, limits: TimeLimits) -> None:
        self._seconds = limits.trial or limits.epoch
        self._due = self._until = NEVER
        self._message, self._note, self._trial, self._again = "", Path(), "", ""
        self._pid = os.getpid()
        self._guard: _Guard | None = None
        self._rings = self._active = False

    @property
    def margin(self) -> float:
        """How long code may take to obey before more is done, in seconds."""
        return min(max(_SHARE * (self._seconds or 0.0), _SHORTEST), _LONGEST)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold what runs in this thread to the limit, where there is one."""
        if self._seconds is None:
            yield
            return
        self._pid = os.getpid()
        boundary.watched_by(self)
        with _guard() as self._guard, self._ringing():
            try:
                yield
            finally:
                boundary.watched_by(None)

    def begin_trial(self, trial: str, again: str, note: Path) -> None:
        """Take up a trial; it may be the one whose process has to be ended.

        again: the command that goes on then. note: a file to say in why.
        """
        self._trial, self._again, self._note, self._active = trial, again, note, True
        self.until(NEVER, "")

    def end_trial(self) -> None:
        """Hold nothing to a limit any more."""
        self._active = False
        self.end()

    def until(self, due: float, message: str) -> None:
        """Let code of the trial's run until then, by the monotonic clock; message: what if not.

        due: NEVER gives each call the whole limit again.
        """
        self._due, self._message = due, message

    def grant(self) -> None:
        """Let code that cleans up run for a margin more, if its time is over."""
        self._due = max(self._due, time.monotonic() + self.margin)

    # What the boundary tells.
    def check(self) -> None:
        now = time.monotonic()
        if self._active and now > self._due:
            raise TimeLimitError(self._message)
        self._until = now + (self._seconds or NEVER) if self._due == NEVER else self._due

    def begin(self) -> None:
        if not self._active or os.getpid() != self._pid:
            return
        left = max(self._until - time.monotonic(), _SOON)
        if self._rings:
            signal.setitimer(signal.ITIMER_REAL, left, self.margin)
        if self._guard is not None:
            line = (
                f"{self._trial}: {self._said}, and nothing else stops it: process {self._pid} is "
                f"ended; go on with: {self._again}"
            )
            self._guard.arm(left + _MARGINS * self.margin, self._said, line, self._note)

    def end(self) -> None:
        if os.getpid() != self._pid:
            return
        if self._rings:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        if self._guard is not None:
            self._guard.disarm()

    @property
    def _said(self) -> str:
        seconds = self._seconds or 0.0
        return self._message or f"the trial was not ready to train within {seconds:g} s"

    @contextmanager
    def _ringing(self) -> Iterator[None]:
        """Take SIGALRM where this thread can; a timer of the caller's own goes on afterwards."""
        alarms = hasattr(signal, "setitimer")
        if not alarms or threading.current_thread() is not threading.main_thread():
            yield
            return
        handler = signal.signal(signal.SIGALRM, self._ring)
        began, (left, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, 0.0)
        self._rings = True
        try:
            yield
        finally:
            self._rings = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, handler)
            if left:
                rest = max(left - (time.monotonic() - began), _SOON)
                signal.setitimer(signal.ITIMER_REAL, rest, interval)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if boundary.is_in_trial_code() and os.getpid() == self._pid:
            raise boundary.standing(TimeLimitError(self._said))


class _Guard:
    """The process that ends this one."""

    def __init__(self) -> None:
        # -I, -S: nothing but the standard library, and nothing that lies about.
        command = [sys.executable, "-I", "-S", str(Path(time_guard.__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0
        )

    def arm(self, seconds: float, why: str, line: str, note: Path) -> None:
        """End this process after so many seconds, with a line for people and a note."""
        shown = "".join(c if c.isprintable() else "?" for c in line)
        self._send({"seconds": seconds, "why": why, "line": shown, "note": str(note)})

    def disarm(self) -> None:
        self._send({})

    def close(self) -> None:
        # Not by the end of its input, which a process that a trial forked may hold open.
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def _send(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None
        # One that a trial has ended guards no more.
        with suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(order).encode() + b"\n")


@contextmanager
def _guard() -> Iterator[_Guard | None]:
    """A guard, where the system starts one; it can have this process say where it is."""
    if time_guard.STACK_SIGNAL is None or not hasattr(faulthandler, "register"):
        yield None
        return
    try:
        guard = _Guard()
    except OSError:
        yield None
        return
    faulthandler.register(time_guard.STACK_SIGNAL, file=_STDERR, all_threads=False)
    try:
        yield guard
    finally:
        guard.close()
        faulthandler.unregister(time_guard.STACK_SIGNAL)
