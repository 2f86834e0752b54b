"""Steps that Optuna's column of 32 bits cannot hold: kept as attributes of a trial instead.

A step may count tokens or examples. Pruners compare trials at equal steps, so steps cannot be
counted anew; what reads through us finds them among the intermediate values, as Optuna has them.
"""

import copy
import re

from optuna.trial import FrozenTrial

_SHORT = range(-(2**31), 2**31)
_PREFIX = "automl:step:"
_STEP = re.compile(rf"{_PREFIX}(-?[0-9]{{1,20}})")


def is_long(step: int) -> bool:
    """Whether Optuna's column cannot hold a step on every database."""
    return step not in _SHORT


def attribute_of(step: int) -> str:
    """The attribute that holds the value of a long step."""
    return f"{_PREFIX}{step}"


def is_reserved(name: str) -> bool:
    """Whether attributes of such a name are long steps, which only a report may add."""
    return name.startswith(_PREFIX)


def with_long_steps(trial: FrozenTrial) -> FrozenTrial:
    """A trial with its long steps among the others; itself where it has none."""
    # Whatever else another program wrote by such a name is not ours to read.
    long = {
        int(match[1]): value
        for name, value in trial.system_attrs.items()
        if (match := _STEP.fullmatch(name)) and isinstance(value, float | int)
    }
    if not long:
        return trial
    # Optuna shares its trials with other readers.
    found = copy.copy(trial)
    found.intermediate_values = {**trial.intermediate_values, **dict(sorted(long.items()))}
    names = {attribute_of(step) for step in long}
    found.system_attrs = {k: v for k, v in trial.system_attrs.items() if k not in names}
    return found
