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
    """A thread that renews the lease held, but only while `tick` moves.

    A trial that makes no progress for `stall` seconds (a hung kernel) lets its lease expire, and
    another worker takes it over. A beat that fails is tried again after 1, 2, 4 … seconds; it ends
    nothing. beaten: called after each beat. hung: called once the lease of a trial that makes no
    progress has expired, for a process that hangs does no more good.
    """

    def __init__(
        self,
        ledger: Ledger,
        worker: Worker,
        stall: float = STALL_SECONDS,
        beaten: Callable[[], None] = lambda: None,
        hung: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="automl-heartbeat", daemon=True)
        self._ledger, self._worker, self._stall = ledger, worker, stall
        self._beaten, self._hung = beaten, hung
        self._quiet = 0.0
        self._lease: Lease | None = None
        self._lost: Lease | None = None
        self._hangs: Lease | None = None
        self._ticked = time.monotonic()
        self._ended = threading.Event()

    def hold(self, lease: Lease | None) -> None:
        """From now on this lease is renewed; None renews none."""
        self._ticked, self._quiet = time.monotonic(), 0.0
        self._lease = lease

    def quiet(self, seconds: float) -> None:
        """The trial says that its next tick may take so long."""
        self._ticked, self._quiet = time.monotonic(), seconds

    def tick(self) -> None:
        """Progress was made.

        Raises:
            LeaseLostError: another worker has taken the trial over meanwhile.
        """
        self._ticked, self._quiet = time.monotonic(), 0.0
        if self._lost is not None and self._lost == self._lease:
            raise LeaseLostError("the lease expired and another worker took the trial over")

    def end(self) -> None:
        """Beat no more; waits for a beat under way, which would outlive its worker."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        failures = 0
        while not self._ended.wait(pause(self._ledger.lease_seconds, failures)):
            try:
                self._beat()
                failures = 0
            except Exception as error:
                # Of whatever kind: without its thread a healthy trial would lose its lease.
                _log.warning("cannot renew the lease now, will try again: %s", first_line(error))
                failures += 1

    def _beat(self) -> None:
        self._ledger.enter(self._worker)
        self._beaten()
        lease = self._lease
        late = time.monotonic() - self._ticked - max(self._stall, self._quiet)
        if lease is not None and late > self._ledger.lease_seconds and lease != self._hangs:
            self._hangs = lease
            self._hung()
        if lease is None or late > 0:
            return
        try:
            self._ledger.renew(lease)
        except LeaseLostError:
            # It may also have been settled just now; then nobody asks.
            self._lost = lease


def pause(lease_seconds: float, failures: int) -> float:
    """Seconds to the next beat: a quarter of the lease, or less after so many that failed."""
    usual = lease_seconds / 4
    return min(2.0 ** (failures - 1), usual) if failures else usual
