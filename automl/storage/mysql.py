"""PyMySQL for SQLAlchemy, with its connection timeout applied to the server's greeting as well.

A proxy whose server is gone accepts connections and never greets. PyMySQL would wait for the
greeting as long as for an answer.
"""

import functools
import math
from types import ModuleType
from typing import Any


@functools.cache
def driver() -> ModuleType:
    """Return PyMySQL as SQLAlchemy uses it, with another `connect`.

    Raises:
        ImportError: PyMySQL is not installed.
    """
    import pymysql

    class Connection(pymysql.connections.Connection):  # type: ignore[misc]
        """A connection whose `connect_timeout` also limits the wait for the server's greeting."""

        _read_timeout: float | None

        def connect(self, sock: Any = None) -> None:
            limit, self._read_timeout = self._read_timeout, self.connect_timeout
            try:
                super().connect(sock)
            finally:
                self._read_timeout = limit

        @property
        def read_timeout(self) -> float:
            """How many seconds a server may be silent."""
            return math.inf if self._read_timeout is None else float(self._read_timeout)

        @read_timeout.setter
        def read_timeout(self, seconds: float) -> None:
            self._read_timeout = None if seconds == math.inf else seconds

    made = ModuleType(pymysql.__name__)
    made.__dict__.update(vars(pymysql))
    made.__dict__["connect"] = Connection
    return made
