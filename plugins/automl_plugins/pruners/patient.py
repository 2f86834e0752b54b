"""Patience: a trial ends when it has been getting worse for a while.

Source: L. Prechelt: Early Stopping, But When?, 1998.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def patient(*, patience: int = 5, min_delta: float = 0.0) -> optuna.pruners.BasePruner:
    """Stop a trial whose last reports are all worse than the best before.

    patience: the last `patience + 1` reports must be worse, by more than `min_delta`.
    """
    return optuna.pruners.PatientPruner(None, patience=patience, min_delta=min_delta)


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"patient": patient}
