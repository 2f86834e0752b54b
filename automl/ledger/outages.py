"""Waits for a database that fails for a while: restarted, out of reach, its connections cut."""

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
"""How long a running search waits for its database."""
OPTION = "automl_patience"
"""The execution option by which an engine of the ledger carries its patience."""

_STOPPING_SECONDS = 5.0
_LONGEST_PAUSE = 2.0
# Not the global generator, whose draws are those of the trial under way.
_draw = random.Random()


class Patience:
    """How long a database may be away before that counts as a failure; not at all at first.

    So a wrong URL fails at once, and a running search waits. Threads share one, and an outage
    counts from the first call that failed. A connection that was cut and comes again at once is
    no news.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._stop = threading.Event()
        self._away: dict[str, float] = {}
        self._said: set[str] = set()
        self._back_at = float("-inf")
        self._lock = threading.Lock()

    @contextmanager
    def lasting(self, stop: threading.Event, seconds: float = OUTAGE_SECONDS) -> Iterator[None]:
        """Wait so long from now on; only for moments once `stop` is set."""
        before = self._seconds, self._stop
        self._seconds, self._stop = seconds, stop
        try:
            yield
        finally:
            self._seconds, self._stop = before

    def insist(
        self, database: str, call: Callable[[bool], T], is_outage: Callable[[Exception], bool]
    ) -> T:
        """Call until it does not fail by an outage, or patience is at its end; raises as it does.

        call: is told whether an earlier call may have gone through unheard.
        """
        for attempt in itertools.count():
            try:
                found = call(attempt > 0)
            except Exception as error:
                if not is_outage(error) or not self._wait(database, attempt, error):
                    raise
            else:
                if database in self._away:
                    self._is_back(database)
                return found
        raise AssertionError("the loop ends by what it returns or raises")

    def seconds_since_outage(self) -> float:
        """How long the database has been back; infinite where it was never away."""
        return time.monotonic() - self._back_at

    def _wait(self, database: str, attempt: int, error: Exception) -> bool:
        """Pause before the next try; False where there is to be none."""
        if not self._seconds:
            return False
        with self._lock:
            began = self._away.setdefault(database, time.monotonic())
            says = attempt > 0 and database not in self._said
            self._said |= {database} if says else set()
        if says:
            _log.warning(
                "database %s %s, trying again for up to %.3g min: %s",
                database,
                "does not answer" if is_silence(error) else "refuses for now",
                self._seconds / 60,
                _cause(error),
            )
        limit = min(self._seconds, _STOPPING_SECONDS) if self._stop.is_set() else self._seconds
        if time.monotonic() - began >= limit:
            return False
        time.sleep(_draw.uniform(0.5, 1) * min(0.05 * 2 ** min(attempt, 10), _LONGEST_PAUSE))
        return True

    def _is_back(self, database: str) -> None:
        with self._lock:
            began, said = self._away.pop(database, None), database in self._said
            self._said.discard(database)
        if began is not None and said:
            self._back_at = time.monotonic()
            seconds = self._back_at - began
            _log.warning("database %s answers again after %.1f s", database, seconds)


def _cause(error: BaseException) -> str:
    """The driver's own words, without the statement that SQLAlchemy adds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return redact_urls(first_line(getattr(error, "orig", None) or error))


def patience_of(engine: Engine) -> Patience:
    """The patience that an engine was made with; none where it has no such option."""
    found = engine.get_execution_options().get(OPTION)
    return found if isinstance(found, Patience) else Patience()
