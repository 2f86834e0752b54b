"""Signals: Ctrl-C, SIGTERM and SIGHUP ask a worker to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from automl.engine.stopping import Stop
from automl.errors import EndedAtOnce

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_GRACE: dict[int, float] = {signal.SIGINT: 2.0}
"""Seconds to the next checkpoint after Ctrl-C, when a user waits; enough for short epochs."""
_PREEMPTION_SECONDS = 20.0
"""Seconds to the next checkpoint after SIGTERM; Slurm kills after 30 s."""


@contextmanager
def stopping_on_signals(stop: Stop) -> Iterator[None]:
    """Set `stop` at the first signal; a second one of the same kind ends the process at once.

    A scheduler may signal every process of a job: the worker, and also the search that started it
    and passes the request on. So two signals of different kinds do not end a worker.

    Outside the main thread, where Python receives no signals, this does nothing.

    Args:
        stop: The request to stop, for the worker in this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    seen: set[int] = set()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number in seen:
            raise EndedAtOnce
        seen.add(number)
        stop.ask(_GRACE.get(number, _PREEMPTION_SECONDS))

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
