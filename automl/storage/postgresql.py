"""psycopg for SQLAlchemy, with connections that do not wait forever for a silent server.

TCP's limits only cover packets that are not acknowledged. A server that hangs, or a proxy that has
lost its server, acknowledges packets but never answers.
"""

import functools
import math
import time
from collections.abc import Generator
from types import ModuleType
from typing import Any

OPTION = "read_timeout"
"""How many seconds a server may be silent; the same option as that of MySQL's driver."""


@functools.cache
def driver() -> ModuleType:
    """Return a copy of psycopg whose `connect` also accepts `read_timeout`.

    Raises:
        ImportError: psycopg is not installed.
    """
    import psycopg

    class Connection(psycopg.Connection[Any]):
        """A connection that is closed if its server is silent for `read_timeout` seconds."""

        read_timeout = math.inf

        @classmethod
        def connect(cls, *args: Any, **kwargs: Any) -> "Connection":
            seconds = float(kwargs.pop(OPTION, math.inf))
            made = super().connect(*args, **kwargs)
            made.read_timeout = seconds
            return made

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            return super().wait(self._limited(gen), *args, **kwargs)

        def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            """Run the steps of psycopg's protocol, and raise an error if the server is silent."""
            try:
                wanted, last_answer = next(gen), time.monotonic()
                while True:
                    ready = yield wanted
                    if ready:
                        last_answer = time.monotonic()
                    elif time.monotonic() - last_answer > self.read_timeout:
                        self.pgconn.finish()
                        raise psycopg.OperationalError(
                            f"the server has not answered for {self.read_timeout:g} s"
                        )
                    wanted = gen.send(ready)
            except StopIteration as stop:
                return stop.value

    module = ModuleType(psycopg.__name__)
    module.__dict__.update(vars(psycopg))
    module.__dict__["connect"] = Connection.connect
    return module
