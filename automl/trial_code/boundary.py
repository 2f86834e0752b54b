"""The boundary between a trial's code and the engine.

Errors of a trial's code become failures of the trial, and processes that it forks end here. Spaces,
trainers, tasks, strategies and pruners run inside a `TrialCode`; engine code that they call runs
inside an `EngineCode`. Both nest.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn, Protocol, Self

from automl.errors import (
    AutoMLError,
    CandidateError,
    DeviceLostError,
    EndedAtOnce,
    PluginError,
    TrialError,
    UncaughtError,
    UsageError,
    described,
    text_of,
)

_TRIALS_OWN = (CandidateError, DeviceLostError, PluginError, TrialError, UsageError)
"""Our errors that a trial's code may raise itself; only the engine raises the others."""
_FORKED = b"automl: ending a process that a trial forked and that returned from the trial's code\n"


class Watch(Protocol):
    """Follows when a trial's code runs, for example to limit its time."""

    def check(self) -> None:
        """A trial's code is about to run; an error raised here counts as that code's error."""

    def begin(self) -> None:
        """A trial's code starts to run."""

    def end(self) -> None:
        """A trial's code stops running."""


class _ThreadState(threading.local):
    """What this thread runs.

    Attributes:
        inside: Whether a trial's code runs.
        pid: The process in which that code started.
        engine_error: The last error that the engine raised into that code.
        watch: Follows when a trial's code runs.
        watched: Whether the watch believes that code to run.
        interrupts: Whether Ctrl-C raised KeyboardInterrupt before that code could change it.
        returned: Called when that code returns to the engine, or calls it.
    """

    inside: bool = False
    pid: int = 0
    engine_error: AutoMLError | None = None
    watch: Watch | None = None
    watched: bool = False
    interrupts: bool = True
    returned: Callable[[], None] | None = None

    def set_watched(self, watched: bool) -> bool:
        """Notify the watch whether a trial's code runs, and return the previous state."""
        before, self.watched = self.watched, watched
        if self.watch is not None and before != watched:
            (self.watch.begin if watched else self.watch.end)()
        return before


_thread = _ThreadState()


class _Side:
    """Code of one side of the boundary; subclasses handle how it ends."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        raise NotImplementedError


class TrialCode(_Side):
    """A context that runs a trial's code.

    All errors leave it as an Exception, unless a person ends this process. An error that the engine
    raised into the code (a stop, a limit, a failed database) leaves it even if the code caught it.
    A process that the code forked is a copy of this one and must not continue as if it were this
    one: it ends here and leaves the database alone.

    Args:
        watched: Whether the watch follows this code.

    Raises:
        UncaughtError: The code raised an error reserved for the engine or for process exit.
    """

    def __init__(self, watched: bool = True) -> None:
        self._watched = watched

    def __enter__(self) -> Self:
        self._pid, self._outer, self._before = os.getpid(), _thread.inside, _thread.engine_error
        if not self._outer:
            if self._watched and _thread.watch is not None:
                _thread.watch.check()
            _thread.interrupts = _takes_interrupts()
            _thread.engine_error, _thread.pid, _thread.inside = None, self._pid, True
            self._was_watched = _thread.set_watched(self._watched)
        return self

    def _leave(self, error: BaseException | None) -> None:
        # Still counts as the trial's code: the trial may have defined the error's class.
        reserved = error is not None and _is_reserved(error)
        message = _message(error) if reserved and error is not None else ""
        _thread.inside = self._outer
        if os.getpid() != self._pid:
            end_forked(failed=error is not None)
        if not self._outer:
            _check_return()
        engine_error = _thread.engine_error
        if not self._outer:
            _thread.engine_error = self._before
            _thread.set_watched(self._was_watched)
        if is_user_interrupt(error):
            return
        if engine_error is not None and engine_error is not error:
            raise engine_error
        if reserved and engine_error is None:
            raise UncaughtError(message) from error


class EngineCode(_Side):
    """A context that runs engine code called by a trial's code.

    Its errors reach the engine even if the trial's code catches them. A process that the trial
    forked ends here.

    Args:
        waits: Whether the engine code may wait, for example for a database. That time does not
            count as the trial's.
    """

    def __init__(self, waits: bool = True) -> None:
        self._waits = waits

    def __enter__(self) -> Self:
        self._outer, _thread.inside = _thread.inside, False
        if self._outer:
            if os.getpid() != _thread.pid:
                end_forked()
            _check_return()
        self._was_watched = _thread.set_watched(False) if self._waits else _thread.watched
        return self

    def _leave(self, error: BaseException | None) -> None:
        if self._outer and isinstance(error, AutoMLError):
            _thread.engine_error = error
        _thread.inside = self._outer
        _thread.set_watched(self._was_watched)


def is_in_trial_code() -> bool:
    """Whether this thread runs a trial's code."""
    return _thread.inside


def trial_error_text(error: BaseException) -> str:
    """An error in one line, formatted as trial code: the trial may have defined its class.

    Raises:
        TimeLimitError: Formatting took too long.
    """
    with TrialCode():
        return described(error)


def uncatchable(error: AutoMLError) -> AutoMLError:
    """Mark an error to raise into a trial's code, so that it counts even if the code catches it."""
    _thread.engine_error = error
    return error


def leave_trial_code() -> None:
    """Reset this thread after it left a trial's code in any way."""
    _thread.inside, _thread.engine_error = False, None
    _thread.set_watched(False)


def set_watch(watch: Watch | None) -> None:
    """Set what follows when this thread runs a trial's code."""
    _thread.watch = watch


def set_return_check(check: Callable[[], None] | None) -> None:
    """Set what this thread calls each time a trial's code returns to the engine, or calls it."""
    _thread.returned = check


def _check_return() -> None:
    if _thread.returned is not None:
        _thread.returned()


def is_user_interrupt(error: BaseException | None) -> bool:
    """Whether a person ends this process: by an unhandled Ctrl-C, or by a second one."""
    if isinstance(error, EndedAtOnce) or not isinstance(error, KeyboardInterrupt):
        return isinstance(error, EndedAtOnce)
    return _thread.interrupts and _takes_interrupts()


def _takes_interrupts() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt in this thread."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _is_reserved(error: BaseException) -> bool:
    """Whether the engine would not take an error for a failure of the trial."""
    ours = isinstance(error, AutoMLError) and not isinstance(error, _TRIALS_OWN)
    # Optuna's own storages raise it; ours do not.
    optunas = type(error).__name__ == "StorageInternalError"
    return not isinstance(error, Exception) or ours or optunas


def _message(error: BaseException) -> str:
    line = f"{type(error).__name__}: {text_of(error) or 'no message'}"
    return f"{line} (its code tried to exit the process)" if isinstance(error, SystemExit) else line


def end_forked(failed: bool = True) -> NoReturn:
    """End a process that a trial forked, without the interpreter's usual cleanup."""
    os.write(2, _FORKED)
    os._exit(int(failed))
