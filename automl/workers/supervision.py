"""Keeps a search's workers at work: those that die are restarted."""

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
"""A worker that dies sooner than this after its start may never have worked."""
VAIN_DEATHS = 3
"""After so many in a row of workers that died quickly, or while the study made no progress, no
other is started. A scheduler may let a job wait, so that time alone says little."""
LOST = -1
"""Stands for the exit code of a worker whose launcher can no longer tell it."""
_EXPLAINED = (1, UsageError.exit_code, Interrupted.exit_code)
"""Exit codes of a worker that said why it left, if it signed off. One that is done says 0."""
_LOOK_SECONDS = 0.2
_GRACE_SECONDS = 30.0
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Started:
    """A worker that was started, the file that holds what it said, and its mark in the ledger."""

    handle: WorkerHandle
    log: Path
    mark: str = ""

    def last_words(self) -> str:
        """The last line it said."""
        try:
            said = self.log.read_text(errors="replace").strip()
        except OSError:
            said = ""
        return said.splitlines()[-1] if said else "it said nothing"


@dataclass
class _Post:
    """One worker's post, and who holds it now; code: how the last one ended, None while it runs."""

    held: Started
    progress: int | None = None
    since: float = field(default_factory=time.monotonic)
    vain_deaths: int = 0
    code: int | None = None
    given_up: bool = False


@dataclass
class Supervisor:
    """Watches the workers that this process started, in a thread of its own.

    start: starts the worker of an index. wanted: whether there is work for a new one. progress: a
    number that grows while the study comes on; None where that cannot be told now. left: what a
    worker left behind that has not signed off; None where it has, or where that cannot be told.
    """

    start: Callable[[int], Started]
    wanted: Callable[[], bool]
    progress: Callable[[], int | None] = lambda: None
    left: Callable[[Started], LostWorker | None] = lambda started: None

    def __post_init__(self) -> None:
        self._posts: dict[int, _Post] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def watch(self) -> None:
        self._thread.start()

    def add(self, index: int) -> None:
        """Start the worker of that index.

        Raises:
            UsageError: the launcher cannot.
        """
        with self._lock:
            self._posts[index] = _Post(self.start(index), self.progress())

    def wait(self, stop: threading.Event) -> None:
        """Wait until every worker has ended.

        Raises:
            Interrupted: `stop` was set.
        """
        while any(post.code is None for post in self._posts.values()):
            if stop.wait(0.1):
                raise Interrupted("interrupted")

    def interrupt(self) -> None:
        """Ask workers to stop at their next tick; end those that do not, or at a second Ctrl-C."""
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
        """Have workers end at once, as a second Ctrl-C does."""
        self.close()
        _end(self._running())

    def close(self) -> None:
        """Start nothing any more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def completed(self) -> bool:
        """Whether some worker left because nothing was left to do."""
        return any(post.code == 0 for post in self._posts.values())

    def warn_of_crashes(self) -> None:
        """Say of each worker that ended badly and was not given up how it ended."""
        for post in self._posts.values():
            if post.code and not post.given_up:
                log, words = post.held.log, post.held.last_words()
                _log.warning("a worker ended with exit code %s: %s (%s)", post.code, words, log)

    def _running(self) -> list[Started]:
        return [post.held for post in self._posts.values() if post.code is None]

    def _run(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            with self._lock:
                for index, post in list(self._posts.items()):
                    if post.code is None:
                        self._look_safely(index, post)

    def _look_safely(self, index: int, post: _Post) -> None:
        """Look after a post; whatever goes wrong, the other posts are looked after, too."""
        try:
            self._look(index, post)
        except Exception as error:
            post.given_up, post.code = True, LOST
            _log.warning("a worker is given up: %s: %s", type(error).__name__, first_line(error))

    def _look(self, index: int, post: _Post) -> None:
        code = _code(post.held)
        if code is None:
            return
        quick = time.monotonic() - post.since < QUICK_SECONDS
        in_vain = quick or (post.progress is not None and self.progress() == post.progress)
        post.vain_deaths = post.vain_deaths + 1 if in_vain else 0
        left = self.left(post.held)
        if _died(code, left) and self.wanted():
            self._replace(index, post, code, left)
        else:
            post.code = code

    def _replace(self, index: int, post: _Post, code: int, left: LostWorker | None) -> None:
        how, log, words = _told(code), post.held.log, post.held.last_words()
        if post.vain_deaths >= VAIN_DEATHS:
            post.given_up, post.code = True, code
            _log.warning(
                "a worker is given up: %d times in a row it %s before anything came of it: %s (%s)",
                VAIN_DEATHS,
                how,
                words,
                log,
            )
            return
        try:
            post.held, post.since = self.start(index), time.monotonic()
            post.progress = self.progress()
        except Exception as error:
            post.given_up, post.code = True, code
            _log.warning("a worker %s and cannot be restarted: %s", how, error)
            return
        trial = "" if left is None or left.number is None else f" after trial {left.number}"
        _log.warning("a worker %s and is restarted%s: %s (%s)", how, trial, words, log)


def _code(started: Started) -> int | None:
    try:
        return started.handle.poll()
    except Exception as error:
        # Whatever a launcher's own library raises: a worker nobody can ask about is lost.
        _log.warning("a worker's launcher cannot say how it is: %s (%s)", error, started.log)
        return LOST


def _died(code: int, left: LostWorker | None) -> bool:
    """Whether a worker ended against its will, whatever the code that a trial ended it with.

    Only what signed off has left on purpose. One that is done finds nothing to do, so that no
    other is wanted: with 0 it need not be looked at.
    """
    return left is not None or code not in _EXPLAINED


def _told(code: int) -> str:
    if code == DeviceLostError.exit_code:
        return "lost its device"
    if code == LOST:
        return "was lost"
    if code < 0 or (128 < code < 192 and code != Interrupted.exit_code):
        # A shell says 128 and the signal's number.
        return f"was killed by signal {-code if code < 0 else code - 128}"
    return f"ended with exit code {code} without signing off"


def _end(others: list[Started]) -> None:
    end = time.monotonic() + _END_SECONDS
    while time.monotonic() < end and (others := _alive(others)):
        for started in others:
            started.handle.interrupt()
        others = _running_after(others, 0.5)
    for started in others:
        _log.warning("a worker does not stop; its trial will be taken over: %s", started.log)


def _running_after(others: list[Started], seconds: float) -> list[Started]:
    end = time.monotonic() + seconds
    while (running := _alive(others)) and time.monotonic() < end:
        time.sleep(0.05)
    return running


def _alive(others: list[Started]) -> list[Started]:
    return [started for started in others if started.handle.poll() is None]
