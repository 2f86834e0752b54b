"""Where a trial's own code meets the engine: what it raises is its failure, what it forks ends.

Spaces, trainers, tasks, strategies and pruners run inside a `TrialCode`; what they call of the
engine runs inside an `EngineCode`. Both nest.
"""

import os
import signal
import threading
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
"""Errors of ours that a trial's code may raise itself; others only the engine raises."""
_BACK = b"automl: a process that a trial forked came back out of the trial's code and is ended\n"


class Watch(Protocol):
    """Something that is to know while a trial's code runs."""

    def check(self) -> None:
        """A trial's code is about to run; what this raises, the code is taken to raise."""

    def begin(self) -> None:
        """It runs from now on."""

    def end(self) -> None:
        """It does not run any more."""


class _Here(threading.local):
    """What this thread runs.

    pid: the process that a trial's code began to run in. verdict: what the engine raised at that
    code last. watched: whether the watch takes that code to run now. interrupts: whether Ctrl-C
    was a KeyboardInterrupt before that code could say so.
    """

    inside: bool = False
    pid: int = 0
    verdict: AutoMLError | None = None
    watch: Watch | None = None
    watched: bool = False
    interrupts: bool = True

    def turn(self, watched: bool) -> bool:
        """Have the watch know whether a trial's code runs; returns what it knew."""
        before, self.watched = self.watched, watched
        if self.watch is not None and before != watched:
            (self.watch.begin if watched else self.watch.end)()
        return before


_here = _Here()


class _Side:
    """Code of one side; what it leaves by is all that matters."""

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
    """Runs code of the trial's.

    Whatever it raises leaves as an Exception, unless a person ends this process. What the engine
    raised at it (a stop, a limit, a database that failed) stands, whatever it made of that. A
    process that it forked is a copy of this one and must not go on as if it were this one: it
    ends here, without a word to the database.

    watched: whether what holds it to a limit is to know.

    Raises:
        UncaughtError: in place of what only the process's end or the engine itself may raise.
    """

    def __init__(self, watched: bool = True) -> None:
        self._watched = watched

    def __enter__(self) -> Self:
        self._pid, self._outer, self._before = os.getpid(), _here.inside, _here.verdict
        if not self._outer:
            if self._watched and _here.watch is not None:
                _here.watch.check()
            _here.interrupts = _takes_interrupts()
            _here.verdict, _here.pid, _here.inside = None, self._pid, True
            self._knew = _here.turn(self._watched)
        return self

    def _leave(self, error: BaseException | None) -> None:
        # While it is still the trial's code, for the error's class is.
        refused = error is not None and _is_not_its_to_raise(error)
        said = _said(error) if refused and error is not None else ""
        _here.inside = self._outer
        if os.getpid() != self._pid:
            end_forked(failed=error is not None)
        verdict = _here.verdict
        if not self._outer:
            _here.verdict = self._before
            _here.turn(self._knew)
        if is_a_persons(error):
            return
        if verdict is not None and verdict is not error:
            raise verdict
        if refused and verdict is None:
            raise UncaughtError(said) from error


class EngineCode(_Side):
    """Runs code of the engine's that a trial's code called; its errors stand.

    A process that the trial forked ends here instead. waits: it may take its time, as a database
    does, which is not the trial's.
    """

    def __init__(self, waits: bool = True) -> None:
        self._waits = waits

    def __enter__(self) -> Self:
        self._outer, _here.inside = _here.inside, False
        if self._outer and os.getpid() != _here.pid:
            end_forked()
        self._knew = _here.turn(watched=False) if self._waits else _here.watched
        return self

    def _leave(self, error: BaseException | None) -> None:
        if self._outer and isinstance(error, AutoMLError):
            _here.verdict = error
        _here.inside = self._outer
        _here.turn(self._knew)


def is_in_trial_code() -> bool:
    """Whether this thread runs code of a trial's."""
    return _here.inside


def described_within(error: BaseException) -> str:
    """An error in one line; its class is the trial's, and so is what that takes to say it.

    Raises:
        TimeLimitError: that took too long.
    """
    with TrialCode():
        return described(error)


def standing(error: AutoMLError) -> AutoMLError:
    """An error to raise at a trial's code that stands, whatever the code makes of it."""
    _here.verdict = error
    return error


def leave() -> None:
    """Run no code of a trial's any more, however it was left."""
    _here.inside, _here.verdict = False, None
    _here.turn(watched=False)


def watched_by(watch: Watch | None) -> None:
    """Have something know from now on when this thread runs code of a trial's."""
    _here.watch = watch


def is_a_persons(error: BaseException | None) -> bool:
    """Whether a person ends this process by it: Ctrl-C that nothing else takes, or a second one."""
    if isinstance(error, EndedAtOnce) or not isinstance(error, KeyboardInterrupt):
        return isinstance(error, EndedAtOnce)
    return _here.interrupts and _takes_interrupts()


def _takes_interrupts() -> bool:
    """Whether Ctrl-C arrives in this thread as a KeyboardInterrupt."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _is_not_its_to_raise(error: BaseException) -> bool:
    """Whether the engine would take an error for something else than a failure of the trial."""
    engines = isinstance(error, AutoMLError) and not isinstance(error, _TRIALS_OWN)
    # Optuna's, which the engine's own storage does not raise.
    storages = type(error).__name__ == "StorageInternalError"
    return not isinstance(error, Exception) or engines or storages


def _said(error: BaseException) -> str:
    said = f"{type(error).__name__}: {text_of(error) or 'no message'}"
    return f"{said} (its code asked the process to end)" if isinstance(error, SystemExit) else said


def end_forked(failed: bool = True) -> NoReturn:
    """End a process that a trial forked, without all that an interpreter does at its end."""
    os.write(2, _BACK)
    os._exit(int(failed))
