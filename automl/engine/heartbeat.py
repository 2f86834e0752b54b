"""Keeps a worker's lease alive while its trial makes progress, and notices its loss."""

import logging
import threading
import time
from collections.abc import Callable

from automl.errors import first_line
from automl.ledger.ledger import Ledger
from automl.ledger.values import Lease, LeaseLostError, Worker

_log = logging.getLogger("automl")
STALL_SECONDS = 300.0


class Heartbeat(threading.Thread):
    """A thread that renews the lease of the running trial, but only while `tick` is called.

    If a trial makes no progress (a hung kernel), its lease expires, and another worker takes it
    over. A beat that fails is tried again after 1, 2, 4 … seconds.

    Args:
        ledger: The ledger of the study.
        worker: This worker.
        stall: Seconds without a tick after which the lease is no longer renewed.
        after_beat: Called after each beat.
        hung: Called once the lease of a trial without progress has expired, so that a process
            that hangs can be ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        worker: Worker,
        stall: float = STALL_SECONDS,
        after_beat: Callable[[], None] = lambda: None,
        hung: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="automl-heartbeat", daemon=True)
        self._ledger, self._worker, self._stall = ledger, worker, stall
        self._after_beat, self._hung = after_beat, hung
        self._expected_pause = 0.0
        self._lease: Lease | None = None
        self._lost: Lease | None = None
        self._hangs: Lease | None = None
        self._ticked = time.monotonic()
        self._ended = threading.Event()

    def hold(self, lease: Lease | None) -> None:
        """Renew this lease from now on; None to renew none."""
        self.expect_pause(0.0)
        self._lease = lease

    def expect_pause(self, seconds: float) -> None:
        """Keep renewing the lease for this many seconds, even without a tick."""
        self._ticked, self._expected_pause = time.monotonic(), seconds

    def tick(self) -> None:
        """Record progress.

        Raises:
            LeaseLostError: Another worker has taken the trial over.
        """
        self.expect_pause(0.0)
        if self._lost is not None and self._lost == self._lease:
            raise LeaseLostError("the lease expired and another worker took the trial over")

    def end(self) -> None:
        """Stop the thread, after the current beat, which must not outlive the worker."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        failures = 0
        while not self._ended.wait(pause(self._ledger.lease_seconds, failures)):
            try:
                self._beat()
                failures = 0
            except Exception as error:
                # Any error: without this thread, a healthy trial would lose its lease.
                _log.warning("cannot renew the lease now, will try again: %s", first_line(error))
                failures += 1

    def _beat(self) -> None:
        self._ledger.enter(self._worker)
        self._after_beat()
        lease = self._lease
        late = time.monotonic() - self._ticked - max(self._stall, self._expected_pause)
        if lease is not None and late > self._ledger.lease_seconds and lease != self._hangs:
            self._hangs = lease
            self._hung()
        if lease is None or late > 0:
            return
        try:
            self._ledger.renew(lease)
        except LeaseLostError:
            # The trial may also have just been settled; then the loss is not checked.
            self._lost = lease


def pause(lease_seconds: float, failures: int) -> float:
    """Return the seconds until the next beat.

    Args:
        lease_seconds: How long a lease lasts; a beat comes four times as often.
        failures: How many beats have failed in a row; after one, the next beat comes sooner.
    """
    usual = lease_seconds / 4
    return min(2.0 ** (failures - 1), usual) if failures else usual
