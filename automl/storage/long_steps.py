"""Stores steps that do not fit into Optuna's 32-bit column as attributes of the trial.

A step may count tokens or examples. Pruners compare trials at equal steps, so steps cannot be
renumbered. Trials that are read through this package have them among their intermediate values.
"""

import copy
import re

from optuna.trial import FrozenTrial

_SHORT = range(-(2**31), 2**31)
_PREFIX = "automl:step:"
_STEP = re.compile(rf"{_PREFIX}(-?[0-9]{{1,20}})")


def is_long(step: int) -> bool:
    """Whether Optuna's column cannot hold a step on some database."""
    return step not in _SHORT


def attribute_of(step: int) -> str:
    """Return the name of the attribute that holds the value of a long step."""
    return f"{_PREFIX}{step}"


def is_reserved(name: str) -> bool:
    """Whether an attribute's name is reserved for long steps, which only reports add."""
    return name.startswith(_PREFIX)


def with_long_steps(trial: FrozenTrial) -> FrozenTrial:
    """Return a trial with its long steps among the intermediate values."""
    # Ignore other values that another program may have stored under such a name.
    long = {
        int(match[1]): value
        for name, value in trial.system_attrs.items()
        if (match := _STEP.fullmatch(name)) and isinstance(value, float | int)
    }
    if not long:
        return trial
    # Optuna shares the trial with other readers, so it is copied.
    found = copy.copy(trial)
    found.intermediate_values = {**trial.intermediate_values, **dict(sorted(long.items()))}
    names = {attribute_of(step) for step in long}
    found.system_attrs = {k: v for k, v in trial.system_attrs.items() if k not in names}
    return found
