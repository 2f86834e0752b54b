"""Steps that Optuna's column of 32 bits cannot hold: kept as attributes of a trial instead.

A step may count tokens or examples. Pruners compare trials at equal steps, so steps cannot be
counted anew; what reads through us finds them among the intermediate values, as Optuna has them.
"""

import copy

from optuna.trial import FrozenTrial

_SHORT = range(-(2**31), 2**31)
_PREFIX = "automl:step:"


def is_long(step: int) -> bool:
    """Whether Optuna's column cannot hold a step on every database."""
    return step not in _SHORT


def attribute_of(step: int) -> str:
    """The attribute that holds the value of a long step."""
    return f"{_PREFIX}{step}"


def with_long_steps(trial: FrozenTrial) -> FrozenTrial:
    """A trial with its long steps among the others; itself where it has none."""
    names = [name for name in trial.system_attrs if name.startswith(_PREFIX)]
    if not names:
        return trial
    # Optuna shares its trials with other readers.
    found = copy.copy(trial)
    long = {int(name.removeprefix(_PREFIX)): trial.system_attrs[name] for name in names}
    found.intermediate_values = {**trial.intermediate_values, **dict(sorted(long.items()))}
    found.system_attrs = {k: v for k, v in trial.system_attrs.items() if k not in names}
    return found
