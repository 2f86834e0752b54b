"""No pruning: every trial is trained to the end."""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def none() -> optuna.pruners.BasePruner:
    """Never stop a trial early."""
    return optuna.pruners.NopPruner()


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"none": none}
