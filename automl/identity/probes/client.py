"""Probes in a process of their own that stays warm: what ends it costs one candidate, not us."""

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import IO, Any

from automl.errors import AutoMLError
from automl.identity.fingerprint import Identity, Level, Verdict, digest_of
from automl.identity.keys import StaticKeys
from automl.identity.probes.sketch import Sketch
from automl.plugin.importing import own_path
from automl.plugin.recipe import START_SECONDS, Recipe

_POLL_SECONDS = 0.2
_END_SECONDS = 5.0
_JOIN_SECONDS = 1.0
_KEPT = 0.5
"""The share of its memory that a process may keep from one candidate to the next."""
_STARTS = 2


class ProberError(AutoMLError):
    """No candidate can be probed: the text says why."""


class StartError(ProberError):
    """The process that probes cannot be started."""


class PartsError(ProberError):
    """The process that probes cannot load the parts."""


class _LateError(Exception):
    """The process said nothing in time."""


class _EndedError(Exception):
    """The process said its last."""


class End(Enum):
    """How a candidate ended the process that probed it."""

    CRASHED = "crashed"
    TIMED_OUT = "timed-out"


@dataclass(frozen=True)
class Answer:
    """What a probe found; `sketch` as bytes, as the ledger keeps it.

    seconds: all that was waited for it, where the process had to be started anew that, too.
    end: where it ended the process; it is unhashable then. consulted: as a Probe has it.
    """

    verdict: str
    sketch: bytes | None = None
    live_parameters: int | None = None
    seconds: float = 0.0
    reason: str | None = None
    end: End | None = None
    consulted: tuple[str, ...] = ()


def context_of(written: StaticKeys, answer: Answer) -> str:
    """All but the sketch that must be equal in equal functions, as one digest."""
    known = {"live_parameters": answer.live_parameters, "consulted": answer.consulted}
    return digest_of({**(written.shared or {}), **known})


def identity_of(written: StaticKeys, answer: Answer) -> Identity:
    """What a candidate's writing and its probe tell of it together."""
    times = {**written.identity.seconds, Level.L2.value: answer.seconds}
    found = replace(
        written.identity,
        verdict=answer.verdict,
        reason=answer.reason,
        live_parameters=answer.live_parameters,
        seconds=times,
    )
    if answer.verdict != Verdict.SOUND.value or answer.sketch is None or written.shared is None:
        return found
    digests = Sketch.from_bytes(answer.sketch).digests(context_of(written, answer))
    return replace(found, l2=digests, sketch=answer.sketch)


@dataclass
class Prober:
    """A warm process that probes candidates by their decisions, one at a time.

    seconds, megabytes: what one probe may take; beyond, it ends as unhashable. progress: called
    while we wait; what it raises ends the waiting.
    """

    recipe: Recipe
    seconds: float = 60.0
    megabytes: int = 4096
    progress: Callable[[], None] = lambda: None
    _process: "_Process | None" = field(default=None, init=False)
    _started: bool = field(default=False, init=False)

    def start(self) -> None:
        """Start the process without waiting until it is ready, where none runs.

        Raises:
            StartError: the system starts none.
        """
        if self._process is None:
            self._process = _Process(self.progress)
            limits = {"seconds": self.seconds, "megabytes": self.megabytes}
            surroundings = {"path": own_path(), "parent": os.getpid()}
            self._process.send({**self.recipe.to_json(), **limits, **surroundings})

    def probe(self, decisions: Mapping[str, Any]) -> Answer:
        """Probe the candidate that these decisions make.

        Raises:
            StartError: the process cannot be started.
            PartsError: it cannot load the parts.
        """
        if not self._started:
            # The first start is paid once, and is no part of what a probe costs.
            self._ready_process()
            self._started = True
        began = time.perf_counter()
        answer, failed_by_memory = self._ask(decisions)
        if failed_by_memory:
            # Earlier candidates may have kept it: it counts only with all memory free.
            self.close()
            answer, _ = self._ask(decisions)
        return replace(answer, seconds=time.perf_counter() - began)

    def close(self) -> None:
        """End the process; another probe starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def _ask(self, decisions: Mapping[str, Any]) -> tuple[Answer, bool]:
        """The answer, and whether it may be for want of memory that earlier candidates kept."""
        process = self._ready_process()
        is_used, process.is_used = process.is_used, True
        try:
            process.send({"decisions": dict(decisions)})
            answer, short, kept = _answer(process.next_line(self.seconds))
        except _LateError:
            return self._ended(End.TIMED_OUT), False
        except _EndedError:
            return self._ended(End.CRASHED), False
        except BaseException:
            # An answer that nobody waits for would be taken for the next one's.
            self.close()
            raise
        if kept > _KEPT * self.megabytes * 2**20:
            self.close()
        return answer, short and is_used

    def _ready_process(self) -> "_Process":
        """A process that waits for a request; a start that fails is tried once more."""
        for attempt in range(1, _STARTS + 1):
            if self._process is not None and self._process.is_idle:
                return self._process
            try:
                return self._fresh_process()
            except StartError:
                if attempt == _STARTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _fresh_process(self) -> "_Process":
        if self._process is not None and self._process.is_ready:
            self.close()  # it has ended, or said what it was not asked for
        self.start()
        assert self._process is not None
        try:
            self._process.await_ready()
        except BaseException:
            self.close()
            raise
        return self._process

    def _ended(self, end: End) -> Answer:
        process, self._process = self._process, None
        code = process.end() if process is not None else None
        reason = f"it took more than {self.seconds:g} seconds"
        if end is End.CRASHED:
            reason = f"it ended its process ({_spelled(code)})"
        return Answer(Verdict.UNHASHABLE.value, reason=reason, end=end)


class _Process:
    """One process that probes, in a session of its own with all that candidates start in it."""

    def __init__(self, progress: Callable[[], None]) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            self._popen = subprocess.Popen(
                # -P: whatever lies in the working directory is not to be imported unasked.
                [sys.executable, "-P", "-m", "automl.identity.probes.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"the process that probes does not start: {error.strerror}") from error
        self._progress = progress
        self._lines: queue.Queue[str | None] = queue.Queue()
        arguments = (self._popen.stdout, self._lines)
        self._reader = threading.Thread(target=_read_lines, args=arguments, daemon=True)
        self._reader.start()
        self.is_ready = self.is_used = False

    @property
    def is_idle(self) -> bool:
        return self.is_ready and self._lines.empty()

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._popen.stdin is not None
        with suppress(OSError):  # it has ended: whoever reads will see that
            self._popen.stdin.write(json.dumps(message) + "\n")
            self._popen.stdin.flush()

    def await_ready(self) -> None:
        """Wait until it has loaded the parts.

        Raises:
            StartError: it ends before, or takes too long.
            PartsError: it cannot load them.
        """
        try:
            error = json.loads(self.next_line(START_SECONDS))["error"]
        except _LateError:
            raise StartError(
                f"the process that probes is not ready after {START_SECONDS:g} seconds"
            ) from None
        except _EndedError:
            how = _spelled(self.end())
            raise StartError(f"the process that probes ends when it starts ({how})") from None
        if error is not None:
            raise PartsError(str(error))
        self.is_ready = True

    def next_line(self, seconds: float) -> str:
        """The next line it says.

        Raises:
            _LateError: it said nothing for so long.
            _EndedError: it has ended, be it amid a line.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._progress()
                if time.monotonic() >= deadline:
                    raise _LateError from None
                continue
            if line is None or not line.endswith("\n"):
                raise _EndedError
            return line

    def end(self) -> int | None:
        """End it with all that runs in its session; its exit code."""
        self._kill()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_END_SECONDS)
        self._reader.join(_JOIN_SECONDS)
        # Where a process that left the session still writes, closing would wait for it.
        pipes = (self._popen.stdin, None if self._reader.is_alive() else self._popen.stdout)
        for pipe in pipes:
            with suppress(OSError):  # what was not sent cannot be
                if pipe is not None:
                    pipe.close()
        return self._popen.returncode

    def _kill(self) -> None:
        if sys.platform == "win32":
            self._popen.kill()
        elif self._popen.returncode is None:  # else its number may be another's by now
            with suppress(OSError):
                os.killpg(self._popen.pid, signal.SIGKILL)


def _read_lines(pipe: IO[str], lines: "queue.Queue[str | None]") -> None:
    with suppress(ValueError):  # no text
        for line in pipe:
            lines.put(line)
    lines.put(None)


def _answer(line: str) -> tuple[Answer, bool, int]:
    """An answer, whether memory was short, and the bytes that the process kept.

    Raises:
        _EndedError: a candidate wrote over it.
    """
    try:
        found = json.loads(line)
        sketch = None if found["sketch"] is None else base64.b64decode(found["sketch"])
        verdict, live = Verdict(found["verdict"]).value, found["live_parameters"]
        consulted = tuple(map(str, found["consulted"]))
        answer = Answer(verdict, sketch, live, reason=found["reason"], consulted=consulted)
        return answer, bool(found["short"]), int(found["kept"])
    except (ValueError, TypeError, KeyError) as error:
        raise _EndedError from error


def _spelled(code: int | None) -> str:
    """An exit code, or the name of the signal that it stands for."""
    with suppress(ValueError):
        if code is not None and code < 0:
            return signal.Signals(-code).name
    return f"exit code {code}"
