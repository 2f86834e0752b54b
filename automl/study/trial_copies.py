"""Copies of Optuna's trials with some attributes changed."""

import copy
from typing import Any

from optuna.trial import FrozenTrial


def with_changes(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    """Return a copy of a trial with some attributes changed."""
    changed = copy.copy(trial)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed
