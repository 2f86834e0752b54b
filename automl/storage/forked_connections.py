"""Makes a forked process drop its parent's connections without closing them."""

import os
import weakref

from sqlalchemy import Engine, Pool

_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_parents: list[Pool] = []
"""Pools of a parent, kept alive because collecting their connections may close a socket."""


def leave_to_parent(engine: Engine) -> None:
    """Make each process that this one forks open its own connections."""
    _engines.add(engine)


def _drop_all() -> None:
    for engine in _engines:
        _parents.append(engine.pool)
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_all)
