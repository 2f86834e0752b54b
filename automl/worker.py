"""A worker: this process, its device, its signals, and the search loop it runs."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from automl.engine import Engine
from automl.errors import UsageError
from automl.ledger.values import Worker
from automl.processes import this_worker
from automl.registry import Registry
from automl.stopping import Stop
from automl.studies import Parts, Study

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_GRACE: dict[int, float] = {signal.SIGINT: 2.0}
"""A person waits; that is enough for short epochs."""
_PREEMPTION_SECONDS = 20.0
"""How long a trial may go on to its next checkpoint after SIGTERM; Slurm kills after 30 s."""


def work(study: Study, parts: Parts, registry: Registry, device: str, stop: Stop) -> None:
    """Run the search loop in this process until nothing is left to do.

    Raises:
        Interrupted: `stop` was set.
        StorageError: the database failed.
    """
    registry.add_events()
    Engine(study, parts, Worker(this_worker(), device), registry.hooks, stop).run()


@contextmanager
def stopping_on_signals(stop: Stop) -> Iterator[None]:
    """Set `stop` at the first Ctrl-C or SIGTERM; the second one ends at once.

    Does nothing outside the main thread, where Python takes no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.ask(_GRACE.get(number, _PREEMPTION_SECONDS))

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resolve_device(asked: str, index: int = 0) -> str:
    """The device of the worker of that index: `auto` deals the GPUs round, else takes the CPU.

    Raises:
        UsageError: there is no such device here.
    """
    there = _devices()
    if asked == "auto":
        gpus = [name for name in there if name != "cpu"]
        return gpus[index % len(gpus)] if gpus else "cpu"
    if asked in there or (asked == "cuda" and "cuda:0" in there):
        return asked
    raise UsageError(f"no device {asked!r} here: expected auto or {' or '.join(there)}")


def device_count() -> int:
    """How many accelerators this machine shows."""
    return len([name for name in _devices() if name != "cpu"])


def _devices() -> list[str]:
    # A trainer that does not use torch should not pay for loading it.
    torch = sys.modules.get("torch")
    if torch is None:
        return ["cpu"]
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if not found and torch.backends.mps.is_available():
        found = ["mps"]
    return [*found, "cpu"]
