"""A process that a trial forks lets go of its parent's connections without closing them."""

import os
import weakref

from sqlalchemy import Engine, Pool

_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_parents: list[Pool] = []
"""Pools of a parent: what is in them must not even be collected, for that may close a socket."""


def leave_to_parent(engine: Engine) -> None:
    """Have each process that this one forks open connections of its own."""
    _engines.add(engine)


def _leave_all() -> None:
    for engine in _engines:
        _parents.append(engine.pool)
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
