"""Retries calls while a database is unavailable: restarting, unreachable, or cut off."""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Engine

from automl.errors import first_line
from automl.ledger.sql_errors import is_silence
from automl.text.redaction import redact_urls

T = TypeVar("T")
_log = logging.getLogger("automl")

OUTAGE_SECONDS = 300.0
"""How long a running search waits for its database, in seconds."""
OPTION = "automl_outage_retry"
"""The execution option in which a ledger engine carries its `OutageRetry`."""

_STOPPING_SECONDS = 5.0
_LONGEST_PAUSE = 2.0
# The global generator is left alone: the running trial draws from it.
_draw = random.Random()


class OutageRetry:
    """Calls a database again until it is available, for a limited time.

    At first nothing is retried, so a wrong URL fails at once; a running search enables it. Threads
    share one object, and an outage is counted from the first call that failed. A connection that
    is cut and restored at once is not logged.

    Args:
        seconds: How long to wait during an outage; 0 to raise at once.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._stop = threading.Event()
        self._outages: dict[str, float] = {}
        self._logged: set[str] = set()
        self._restored_at = float("-inf")
        self._lock = threading.Lock()

    @contextmanager
    def enabled(self, stop: threading.Event, seconds: float = OUTAGE_SECONDS) -> Iterator[None]:
        """Wait during outages within this context.

        Args:
            stop: Once it is set, outages are waited for only a few seconds.
            seconds: How long to wait during an outage.
        """
        before = self._seconds, self._stop
        self._seconds, self._stop = seconds, stop
        try:
            yield
        finally:
            self._seconds, self._stop = before

    def run(
        self, database: str, call: Callable[[bool], T], is_outage: Callable[[Exception], bool]
    ) -> T:
        """Call until it succeeds, fails for another reason, or the time is up.

        Args:
            database: The database's name in log lines, without a password.
            call: The call; its argument says whether an earlier call may have succeeded although
                its reply was lost.
            is_outage: Whether an error means that the database is unavailable.

        Returns:
            The call's result. If the time is up, the last error is raised.
        """
        for attempt in itertools.count():
            try:
                found = call(attempt > 0)
            except Exception as error:
                if not is_outage(error) or not self._wait(database, attempt, error):
                    raise
            else:
                if database in self._outages:
                    self._end_outage(database)
                return found
        raise AssertionError("the loop returns or raises")

    def seconds_since_outage(self) -> float:
        """Return the seconds since the last outage ended; infinite if there was none."""
        return time.monotonic() - self._restored_at

    def _wait(self, database: str, attempt: int, error: Exception) -> bool:
        """Pause before the next try; return False if the time is up."""
        if not self._seconds:
            return False
        with self._lock:
            began = self._outages.setdefault(database, time.monotonic())
            is_new = attempt > 0 and database not in self._logged
            self._logged |= {database} if is_new else set()
        if is_new:
            _log.warning(
                "database %s %s, retrying for up to %.3g min: %s",
                database,
                "does not answer" if is_silence(error) else "rejects requests",
                self._seconds / 60,
                _cause(error),
            )
        limit = min(self._seconds, _STOPPING_SECONDS) if self._stop.is_set() else self._seconds
        if time.monotonic() - began >= limit:
            return False
        time.sleep(_draw.uniform(0.5, 1) * min(0.05 * 2 ** min(attempt, 10), _LONGEST_PAUSE))
        return True

    def _end_outage(self, database: str) -> None:
        with self._lock:
            began, logged = self._outages.pop(database, None), database in self._logged
            self._logged.discard(database)
        if began is not None and logged:
            self._restored_at = time.monotonic()
            seconds = self._restored_at - began
            _log.warning("database %s answers again after %.1f s", database, seconds)


def _cause(error: BaseException) -> str:
    """Return the driver's message, without the statement that SQLAlchemy adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return redact_urls(first_line(getattr(error, "orig", None) or error))


def outage_retry_of(engine: Engine) -> OutageRetry:
    """Return the `OutageRetry` of an engine; one that never waits if it has none."""
    found = engine.get_execution_options().get(OPTION)
    return found if isinstance(found, OutageRetry) else OutageRetry()
