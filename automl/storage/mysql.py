"""PyMySQL for SQLAlchemy, whose connections wait no longer for a greeting than for a connection.

A proxy whose server is gone takes every connection and never greets. PyMySQL would wait for that
as long as for an answer.
"""

import functools
import math
from types import ModuleType
from typing import Any


@functools.cache
def driver() -> ModuleType:
    """PyMySQL as SQLAlchemy uses it, but for `connect`.

    Raises:
        ImportError: PyMySQL is not installed.
    """
    import pymysql

    class Connection(pymysql.connections.Connection):  # type: ignore[misc]
        """A connection whose `connect_timeout` is also for what a server says first."""

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
