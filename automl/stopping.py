"""What ends a trial under way before its end: a request to stop, or a budget that is spent."""

import threading
import time

from automl.ledger.ledger import Ledger
from automl.ledger.values import BudgetSpentError, Lease


class Stop(threading.Event):
    """A request to stop; until it is overdue, a trial may go on to its next checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0

    def ask(self, grace: float = 0.0) -> None:
        """Ask to stop within so many seconds."""
        self._until = time.monotonic() + grace
        self.set()

    @property
    def overdue(self) -> bool:
        """Whether it was asked, and the time for a last checkpoint has passed."""
        return self.is_set() and time.monotonic() >= self._until


class Meter:
    """Holds the trial under way to the study's deadline and to its budget of device time.

    Where a study limits device time, it is bought in parts before it is used, so that all
    workers together never use more than there is.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lease: Lease | None = None
        self._deadline = float("inf")
        self._metered = False
        self._began = self._ticked = 0.0
        self._bought = 0.0

    def refresh(self) -> None:
        """Look how much time the study has; a resumed study may have more than it had."""
        left = self._ledger.time_left()
        self._metered = left.metered
        self._deadline = (
            float("inf") if left.seconds is None else time.monotonic() + float(left.seconds)
        )

    def begin(self, lease: Lease) -> None:
        """Training of a trial begins now.

        Raises:
            BudgetSpentError: there is no time for it.
        """
        self._lease = lease
        self._began = self._ticked = time.monotonic()
        self._bought = 0.0
        self.check()

    def end(self) -> float:
        """Training has ended; returns how long it took, 0 where none was under way."""
        seconds = 0.0 if self._lease is None else time.monotonic() - self._began
        self._lease = None
        return seconds

    def check(self) -> None:
        """Pass while the trial under way may go on until about the next check.

        Raises:
            BudgetSpentError: the deadline has passed, or no device time is left.
            LeaseLostError: another worker took the trial over.
        """
        now = time.monotonic()
        if self._lease is None:
            return
        if now >= self._deadline:
            raise BudgetSpentError("the study's time is over")
        # The next step will take about as long as the last one did.
        needed = 2 * now - self._ticked - self._began
        self._ticked = now
        while self._metered and self._bought <= needed:
            bought = self._ledger.buy_time(self._lease)
            if not bought:
                raise BudgetSpentError("the study's device time is spent")
            self._bought += bought
