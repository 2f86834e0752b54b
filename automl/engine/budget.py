"""The budget of time: ends a trial once the study's deadline or its device time is over."""

import time
from collections.abc import Mapping

from automl.ledger.ledger import Ledger
from automl.ledger.values import BudgetSpentError, Lease
from automl.plugin.cost_metric import CostMetric
from automl.spec import SECONDS
from automl.trial_code.boundary import EngineCode


class Meter:
    """Ends the running trial once the study's deadline or its budget of device time is over.

    If a study limits device time, workers buy it in parts before they use it, so that all workers
    together never use more than there is. A trial uses the seconds that it trains, or those that
    it reports in metric `cost`. A judge's trial uses them like any other.

    Args:
        ledger: The ledger to buy time from.
        cost: The metric that a trial reports its seconds in, counted from its start, or a weighted
            sum of metrics.
    """

    def __init__(self, ledger: Ledger, cost: str = SECONDS) -> None:
        self._ledger = ledger
        self._cost = None if cost == SECONDS else CostMetric.parse(cost)
        self._lease: Lease | None = None
        self._deadline = float("inf")
        self.metered = False
        self._began = self._before = self._reported = 0.0
        self._bought = self._step = 0.0
        self._spent = False

    def refresh(self) -> None:
        """Read how much time the study has left; a resumed study may have more than before."""
        left = self._ledger.time_left()
        self.metered = left.metered
        self._deadline = (
            float("inf") if left.seconds is None else time.monotonic() + float(left.seconds)
        )

    def begin(self, lease: Lease) -> None:
        """Start to count a trial's time.

        Raises:
            BudgetSpentError: No time is left for it.
        """
        self._lease = lease
        self._began = time.monotonic()
        self._before = self._reported = self._bought = 0.0
        self._spent = False
        self.check()

    def end(self) -> float:
        """Stop counting; returns the seconds used, 0 if no trial was counted.

        A reported cost grows by steps, so a rest of the budget may be too small for the next one.
        It counts as used: otherwise the trial would be taken up again, and stop there, for ever.
        """
        used = 0.0 if self._lease is None else self._used()
        self._lease = None
        return max(used, self._bought) if self._spent and self._cost is not None else used

    def report(self, metrics: Mapping[str, float]) -> None:
        """Read a trial's cost from its report.

        Raises:
            TrialError: The report has no cost, or not a number of seconds.
        """
        if self._cost is None:
            return
        # Earlier attempts were charged for what they reported.
        earlier = self._lease.device_seconds if self._lease else 0.0
        self._reported = max(self._reported, self._cost.of(metrics) - earlier)

    def check(self) -> None:
        """Check that the running trial may continue until about the next check.

        Raises:
            BudgetSpentError: The deadline is over, or no device time is left.
            LeaseLostError: Another worker took the trial over.
        """
        if self._lease is None:
            return
        if time.monotonic() >= self._deadline:
            raise BudgetSpentError("the study's time is over")
        used = self._used()
        # The next step will take about as long as the last one, which may be another trial's.
        self._step = used - self._before or self._step
        self._before = used
        needed = used + self._step
        while self.metered and self._bought <= needed:
            with EngineCode():
                bought = self._ledger.buy_time(self._lease)
            if not bought:
                self._spent = True
                raise BudgetSpentError("the study's device time is spent")
            self._bought += bought

    def _used(self) -> float:
        return time.monotonic() - self._began if self._cost is None else self._reported
