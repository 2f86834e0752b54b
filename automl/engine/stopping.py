"""What ends a trial under way before its end: a request to stop, or a budget that is spent."""

import threading
import time
from collections.abc import Mapping

from automl.errors import TrialError
from automl.ledger.ledger import Ledger
from automl.ledger.values import BudgetSpentError, Lease
from automl.spec import SECONDS
from automl.trial_code.boundary import EngineCode


class Stop(threading.Event):
    """A request to stop; until it is overdue, a trial may go on to its next checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0

    def ask(self, grace: float = 0.0) -> None:
        """Ask to stop within so many seconds; who asked for longer before has that time still."""
        self._until = max(self._until, time.monotonic() + grace)
        self.set()

    @property
    def overdue(self) -> bool:
        """Whether it was asked, and the time for a last checkpoint has passed."""
        return self.is_set() and time.monotonic() >= self._until


class Meter:
    """Holds the trial under way to the study's deadline and to its budget of device time.

    Where a study limits device time, it is bought in parts before it is used, so that all
    workers together never use more than there is. What a trial used is the time that it trained,
    or what it reports in metric `cost`, in seconds since it began.
    """

    def __init__(self, ledger: Ledger, cost: str = SECONDS) -> None:
        self._ledger, self._cost = ledger, cost
        self._lease: Lease | None = None
        self._deadline = float("inf")
        self.metered = False
        self._began = self._before = self._reported = 0.0
        self._bought = self._step = 0.0

    def refresh(self) -> None:
        """Look how much time the study has; a resumed study may have more than it had."""
        left = self._ledger.time_left()
        self.metered = left.metered
        self._deadline = (
            float("inf") if left.seconds is None else time.monotonic() + float(left.seconds)
        )

    def begin(self, lease: Lease) -> None:
        """Training of a trial begins now.

        Raises:
            BudgetSpentError: there is no time for it.
        """
        self._lease = lease
        self._began = time.monotonic()
        self._before = self._reported = self._bought = 0.0
        self.check()

    def end(self) -> float:
        """Training has ended; returns what it used, 0 where none was under way."""
        used = 0.0 if self._lease is None else self._used()
        self._lease = None
        return used

    def report(self, metrics: Mapping[str, float]) -> None:
        """Take note of what a trial reports.

        Raises:
            TrialError: it does not report what it costs, in seconds.
        """
        if self._cost == SECONDS:
            return
        if self._cost not in metrics:
            known = ", ".join(metrics)
            raise TrialError(f"no report of the cost {self._cost!r}; there are: {known}")
        if not 0 <= metrics[self._cost] < float("inf"):
            raise TrialError(f"the cost {self._cost!r} must be seconds, got {metrics[self._cost]}")
        # What earlier attempts reported was charged to them.
        earlier = self._lease.device_seconds if self._lease else 0.0
        self._reported = max(self._reported, metrics[self._cost] - earlier)

    def check(self) -> None:
        """Pass while the trial under way may go on until about the next check.

        Raises:
            BudgetSpentError: the deadline has passed, or no device time is left.
            LeaseLostError: another worker took the trial over.
        """
        if self._lease is None:
            return
        if time.monotonic() >= self._deadline:
            raise BudgetSpentError("the study's time is over")
        used = self._used()
        # The next step will take about as long as the last one did, of another trial perhaps.
        self._step = used - self._before or self._step
        self._before = used
        needed = used + self._step
        while self.metered and self._bought <= needed:
            with EngineCode():
                bought = self._ledger.buy_time(self._lease)
            if not bought:
                raise BudgetSpentError("the study's device time is spent")
            self._bought += bought

    def _used(self) -> float:
        return self._reported if self._cost != SECONDS else time.monotonic() - self._began
