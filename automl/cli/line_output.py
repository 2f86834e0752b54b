"""Shows a search as JSON lines or plain lines; `live.py` shows it on a terminal."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from automl.cli import text
from automl.cli.events import Event
from automl.cli.terminal import say
from automl.ledger.queries import Counts


class Output(Protocol):
    """Shows events as they arrive, and the study's counts after each poll."""

    def emit(self, event: Event) -> None: ...

    def refresh(self, counts: Counts) -> None: ...

    def showing(self) -> AbstractContextManager[Any]: ...


class JsonLines:
    """Writes each event as one JSON object on a line."""

    def emit(self, event: Event) -> None:
        _say(text.json_line(event))

    def refresh(self, counts: Counts) -> None: ...

    def showing(self) -> AbstractContextManager[Any]:
        return nullcontext()


class PlainLines:
    """Writes a line for each trial and the summary, for logs and pipes."""

    def emit(self, event: Event) -> None:
        for line in _LINES[event["event"]](event):
            self.write(line)

    def write(self, line: str) -> None:
        _say(line)

    def refresh(self, counts: Counts) -> None: ...

    def showing(self) -> AbstractContextManager[Any]:
        return nullcontext()


def _say(line: str) -> None:
    try:
        say(line)
    except BrokenPipeError:
        # The reader has exited, as `head` does; the search continues.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_LINES: dict[str, Callable[[Event], list[str]]] = {
    "study": lambda event: [text.study_line(event)],
    "trial": lambda event: [text.trial_line(event)],
    "report": lambda event: [],
    "summary": text.summary_lines,
}
