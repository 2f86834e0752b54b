"""Run probes in a separate, warm process, so that a crash costs one candidate, not the search."""

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
_MAX_KEPT_SHARE = 0.5
"""The share of its memory limit that a process may keep from one candidate to the next."""
_START_ATTEMPTS = 2


class ProberError(AutoMLError):
    """No candidate can be probed; the message says why."""


class StartError(ProberError):
    """The probing process cannot be started."""


class PartsError(ProberError):
    """The probing process cannot load the parts."""


class _LateError(Exception):
    """The process did not answer in time."""


class _EndedError(Exception):
    """The process ended."""


class End(Enum):
    """How a candidate ended the process that probed it."""

    CRASHED = "crashed"
    TIMED_OUT = "timed-out"


@dataclass(frozen=True)
class Answer:
    """The result of a probe.

    Attributes:
        verdict: The value of a `Verdict`.
        sketch: The sketch as bytes, as the ledger stores it.
        live_parameters: The number of parameter elements that a gradient reached.
        seconds: The time waited for the answer, including a restart of the process.
        reason: Why the verdict is not `SOUND`.
        end: How the candidate ended the process, if it did; the verdict is `UNHASHABLE` then.
        consulted: As in `Probe`.
    """

    verdict: str
    sketch: bytes | None = None
    live_parameters: int | None = None
    seconds: float = 0.0
    reason: str | None = None
    end: End | None = None
    consulted: tuple[str, ...] = ()


def context_of(written: StaticKeys, answer: Answer) -> str:
    """Hash everything besides the sketch that must be equal for equal functions.

    Args:
        written: The static keys of a candidate.
        answer: The result of its probe.
    """
    known = {"live_parameters": answer.live_parameters, "consulted": answer.consulted}
    return digest_of({**(written.shared or {}), **known})


def identity_of(written: StaticKeys, answer: Answer) -> Identity:
    """Combine the static keys of a candidate with the result of its probe."""
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
    """Probes candidates in a warm process, one at a time, by their decisions.

    Attributes:
        recipe: The parts to load in the process.
        seconds: The time limit of a probe. A candidate that exceeds a limit is unhashable.
        megabytes: The memory limit of a probe, in MiB.
        progress: Called while waiting; an error that it raises ends the wait.
    """

    recipe: Recipe
    seconds: float = 60.0
    megabytes: int = 4096
    progress: Callable[[], None] = lambda: None
    _process: "_Process | None" = field(default=None, init=False)
    _started: bool = field(default=False, init=False)

    def start(self) -> None:
        """Start the process, if none is running, without waiting until it is ready.

        Raises:
            StartError: The system cannot start it.
        """
        if self._process is None:
            self._process = _Process(self.progress)
            limits = {"seconds": self.seconds, "megabytes": self.megabytes}
            environment = {"path": own_path(), "parent": os.getpid()}
            self._process.send({**self.recipe.to_json(), **limits, **environment})

    def probe(self, decisions: Mapping[str, Any]) -> Answer:
        """Probe the candidate that these decisions make.

        Raises:
            StartError: The process cannot be started.
            PartsError: The process cannot load the parts.
        """
        if not self._started:
            # The first start happens once and does not count as the cost of a probe.
            self._ready_process()
            self._started = True
        began = time.perf_counter()
        answer, failed_by_memory = self._ask(decisions)
        if failed_by_memory:
            # Earlier candidates may have kept the memory; only a fresh process decides.
            self.close()
            answer, _ = self._ask(decisions)
        return replace(answer, seconds=time.perf_counter() - began)

    def close(self) -> None:
        """End the process; another probe starts a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def _ask(self, decisions: Mapping[str, Any]) -> tuple[Answer, bool]:
        """The answer, and whether it may have failed because earlier candidates kept memory."""
        process = self._ready_process()
        is_used, process.is_used = process.is_used, True
        try:
            process.send({"decisions": dict(decisions)})
            answer, short, kept = _answer(process.next_line(self.seconds))
        except _LateError:
            return self._failed(End.TIMED_OUT), False
        except _EndedError:
            return self._failed(End.CRASHED), False
        except BaseException:
            # Otherwise, the next request would receive this request's answer.
            self.close()
            raise
        if kept > _MAX_KEPT_SHARE * self.megabytes * 2**20:
            self.close()
        return answer, short and is_used

    def _ready_process(self) -> "_Process":
        """A process that waits for a request; a failed start is retried once."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            if self._process is not None and self._process.is_idle:
                return self._process
            try:
                return self._fresh_process()
            except StartError:
                if attempt == _START_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _fresh_process(self) -> "_Process":
        if self._process is not None and self._process.is_ready:
            self.close()  # it has ended or sent an unexpected line
        self.start()
        assert self._process is not None
        try:
            self._process.await_ready()
        except BaseException:
            self.close()
            raise
        return self._process

    def _failed(self, end: End) -> Answer:
        process, self._process = self._process, None
        code = process.end() if process is not None else None
        reason = f"it took more than {self.seconds:g} seconds"
        if end is End.CRASHED:
            reason = f"it ended its process ({_exit_text(code)})"
        return Answer(Verdict.UNHASHABLE.value, reason=reason, end=end)


class _Process:
    """A probing process, in its own session together with all processes that candidates start."""

    def __init__(self, progress: Callable[[], None]) -> None:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            self._popen = subprocess.Popen(
                # -P: never import files from the working directory by accident.
                [sys.executable, "-P", "-m", "automl.identity.probes.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise StartError(f"the probing process cannot start: {error.strerror}") from error
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
        with suppress(OSError):  # it has ended, which the next read will show
            self._popen.stdin.write(json.dumps(message) + "\n")
            self._popen.stdin.flush()

    def await_ready(self) -> None:
        """Wait until it has loaded the parts.

        Raises:
            StartError: It ended first or took too long.
            PartsError: It cannot load them.
        """
        try:
            error = json.loads(self.next_line(START_SECONDS))["error"]
        except _LateError:
            raise StartError(
                f"the probing process is not ready after {START_SECONDS:g} seconds"
            ) from None
        except _EndedError:
            how = _exit_text(self.end())
            raise StartError(f"the probing process ended while it started ({how})") from None
        if error is not None:
            raise PartsError(str(error))
        self.is_ready = True

    def next_line(self, seconds: float) -> str:
        """The next line of its output.

        Raises:
            _LateError: No line came in this many seconds.
            _EndedError: It has ended, perhaps in the middle of a line.
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
        """Kill all processes of its session; returns its exit code."""
        self._kill()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_END_SECONDS)
        self._reader.join(_JOIN_SECONDS)
        # If a process that left the session still writes, closing would wait for it.
        pipes = (self._popen.stdin, None if self._reader.is_alive() else self._popen.stdout)
        for pipe in pipes:
            with suppress(OSError):  # unsent requests cannot be flushed
                if pipe is not None:
                    pipe.close()
        return self._popen.returncode

    def _kill(self) -> None:
        if sys.platform == "win32":
            self._popen.kill()
        elif self._popen.returncode is None:  # after that, another process may have its id
            with suppress(OSError):
                os.killpg(self._popen.pid, signal.SIGKILL)


def _read_lines(pipe: IO[str], lines: "queue.Queue[str | None]") -> None:
    with suppress(ValueError):  # not valid UTF-8
        for line in pipe:
            lines.put(line)
    lines.put(None)


def _answer(line: str) -> tuple[Answer, bool, int]:
    """Parse an answer, whether memory ran short, and the bytes that the process kept.

    Raises:
        _EndedError: The line is not an answer: a candidate wrote to the pipe.
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


def _exit_text(code: int | None) -> str:
    """An exit code as text, or the name of its signal."""
    with suppress(ValueError):
        if code is not None and code < 0:
            return signal.Signals(-code).name
    return f"exit code {code}"
