"""psycopg for SQLAlchemy, with connections that do not wait for a silent server for ever.

TCP's own limits are for packets that nobody acknowledges. A server that hangs, or a proxy whose
server is gone, acknowledges each and answers none.
"""

import functools
import math
import time
from collections.abc import Generator
from types import ModuleType
from typing import Any

OPTION = "read_timeout"
"""As in URLs of MySQL's driver: how many seconds a server may be silent."""


@functools.cache
def driver() -> ModuleType:
    """psycopg as SQLAlchemy uses it, but for `connect`, which knows one option more.

    Raises:
        ImportError: psycopg is not installed.
    """
    import psycopg

    class Connection(psycopg.Connection[Any]):
        """A connection that is closed when its server is silent for `read_timeout` seconds."""

        read_timeout = math.inf

        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> "Connection":
            seconds = float(kwargs.pop(OPTION, math.inf))
            made = super().connect(*args, **kwargs)
            made.read_timeout = seconds
            return made

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            return super().wait(self._hearing(gen), *args, **kwargs)

        def _hearing(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            """Passes on what a protocol step waits for; between waits it is sent what came."""
            try:
                wanted, heard = next(gen), time.monotonic()
                while True:
                    ready = yield wanted
                    if ready:
                        heard = time.monotonic()
                    elif time.monotonic() - heard > self.read_timeout:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(
                            f"the server has not answered for {self.read_timeout:g} s"
                        )
                    wanted = gen.send(ready)
            except StopIteration as stop:
                return stop.value

    made = ModuleType(psycopg.__name__)
    made.__dict__.update(vars(psycopg))
    made.__dict__["connect"] = Connection.connect
    return made
