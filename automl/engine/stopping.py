"""Requests to stop a worker."""

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
            grace: Seconds that a trial may take to reach its next checkpoint. A longer time from
                an earlier request still applies.
        """
        self._until = max(self._until, time.monotonic() + grace)
        self.set()

    @property
    def overdue(self) -> bool:
        """Whether the worker was asked to stop, and the time for a last checkpoint is over."""
        return self.is_set() and time.monotonic() >= self._until
