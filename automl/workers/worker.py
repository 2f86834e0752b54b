"""A worker: this process, its share of its device, its signals, and the search loop it runs."""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from automl.devices.placement import Place
from automl.engine.loop import Engine
from automl.engine.stopping import Stop
from automl.engine.worker_ids import is_supervised, this_worker
from automl.errors import EndedAtOnce
from automl.ledger.values import Worker
from automl.plugin.registry import Registry
from automl.study.parts import Parts
from automl.study.study import Study

_log = logging.getLogger("automl")
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_GRACE: dict[int, float] = {signal.SIGINT: 2.0}
"""A person waits; that is enough for short epochs."""
_PREEMPTION_SECONDS = 20.0
"""How long a trial may go on to its next checkpoint after SIGTERM; Slurm kills after 30 s."""


def work(
    study: Study,
    parts: Parts,
    registry: Registry,
    place: Place,
    stop: Stop,
    hung: Callable[[], None] = lambda: None,
) -> None:
    """Run the search loop in this process until nothing is left to do.

    hung: called once a trial has made no progress for so long that its lease is gone.

    Raises:
        Interrupted: `stop` was set.
        StorageError: the database failed.
        DeviceLostError: only another process can use the device again.
    """
    registry.add_events()
    alone = not is_supervised()
    worker = Worker(this_worker(), place.device.name)
    share = Share(place)
    share.keep_threads()
    Engine(
        study,
        parts,
        worker,
        registry.hooks,
        stop,
        device=place.device.torch,
        prepare=share.keep,
        hung=hung,
        alone=alone,
    ).run()


@dataclass
class Share:
    """Holds this process to its place's share of the cores and of the device's memory."""

    place: Place
    kept: bool = False

    def keep_threads(self) -> None:
        """Hold torch to its share of the cores, where it is loaded."""
        torch, threads = sys.modules.get("torch"), self.place.threads
        # Setting the number anew costs more than a step of a small model.
        if torch is not None and threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

    def keep(self) -> None:
        """Set the limits in torch, once it is loaded; a trainer without torch need not load it."""
        self.keep_threads()
        torch = sys.modules.get("torch")
        if torch is None or self.kept:
            return
        self.kept = True
        if not self.place.device.is_gpu:
            return
        if not torch.cuda.is_available():
            name = self.place.device.name
            _log.warning("torch cannot use %s: install it with CUDA, or give --device cpu", name)
        elif self.place.memory_fraction is not None:
            device = torch.device(self.place.device.torch)
            torch.cuda.set_per_process_memory_fraction(self.place.memory_fraction, device)


@contextmanager
def stopping_on_signals(stop: Stop) -> Iterator[None]:
    """Set `stop` at the first Ctrl-C or SIGTERM; a second one of its kind ends at once.

    Of its kind, for a scheduler may signal every process of a job, and so the worker as well as
    who started it and passes the request on. Does nothing outside the main thread, where Python
    takes no signals.
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
