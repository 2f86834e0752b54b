"""Requests to stop a worker, and the signal handlers that make them."""

import signal
import threading
import time


class Stop(threading.Event):
    """A request to stop; until it is overdue, a trial may continue to its next checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0

    def ask(self, grace: float = 0.0) -> None:
        """Ask the worker to stop.

        Args:
            grace: Seconds to the next checkpoint at most. A longer time from an earlier request
                remains.
        """
        self._until = max(self._until, time.monotonic() + grace)
        self.set()

    @property
    def overdue(self) -> bool:
        """Whether the worker was asked to stop, and the time for a last checkpoint is over."""
        return self.is_set() and time.monotonic() >= self._until


class SignalHandlers:
    """The handlers of the signals that ask this process to stop, which a trial may replace."""

    def __init__(self) -> None:
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self._known = {number: signal.getsignal(number) for number in numbers}

    def restore(self) -> None:
        """Restore the handlers of when this object was made; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._known.items():
            # A handler that was not set from Python cannot be restored.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._known)
