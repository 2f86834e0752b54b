"""Patience: stops a trial that has not improved for a while.

Source: L. Prechelt: Early Stopping, But When?, 1998.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def patient(*, patience: int = 5, min_delta: float = 0.0) -> optuna.pruners.BasePruner:
    """Stop a trial whose last reports are all worse than the best one before them.

    Args:
        patience: One more than this number of reports must be worse.
        min_delta: Ignore reports that are worse by no more than this.
    """
    return optuna.pruners.PatientPruner(None, patience=patience, min_delta=min_delta)


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"patient": patient}
