"""ASHA: asynchronous successive halving, as Optuna implements it.

Source: L. Li et al.: A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def asha(
    *,
    min_resource: int = 1,
    reduction_factor: int = 4,
    min_early_stopping_rate: int = 0,
    bootstrap_count: int = 0,
) -> optuna.pruners.BasePruner:
    """At steps that grow by `reduction_factor`, continue only the best fraction of the trials.

    Args:
        min_resource: The first step at which a trial may be stopped.
        reduction_factor: One in this many trials continues; also the factor between the steps.
        min_early_stopping_rate: Delays the first step by this many factors.
        bootstrap_count: The number of trials to stop at each step before the first may continue,
            to have trials to compare with.
    """
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=min_resource,
        reduction_factor=reduction_factor,
        min_early_stopping_rate=min_early_stopping_rate,
        bootstrap_count=bootstrap_count,
    )


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"asha": asha}
