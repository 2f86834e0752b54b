"""Hyperband: several successive halvings in parallel that start to stop trials at different steps.

Source: L. Li et al.: Hyperband, arXiv 1603.06560, with asynchronous halving in each bracket.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def hyperband(
    *,
    min_resource: int = 1,
    max_resource: int | None = None,
    reduction_factor: int = 3,
    bootstrap_count: int = 0,
) -> optuna.pruners.BasePruner:
    """Assign each trial to one of several halvings, from aggressive to conservative.

    Args:
        min_resource: The first step at which the most aggressive one may stop a trial.
        max_resource: The last step of training; by default the largest that a complete trial
            reached.
        reduction_factor: One in this many trials continues.
        bootstrap_count: The number of trials to wait for at a step before any may continue.

    Raises:
        ValueError: A value is invalid.
    """
    # Optuna checks most of these values only when it first prunes.
    optuna.pruners.SuccessiveHalvingPruner(
        min_resource=min_resource,
        reduction_factor=reduction_factor,
        bootstrap_count=bootstrap_count,
    )
    if max_resource is not None and max_resource < min_resource:
        raise ValueError(f"max_resource must be at least {min_resource}, got {max_resource}")
    return optuna.pruners.HyperbandPruner(
        min_resource=min_resource,
        max_resource="auto" if max_resource is None else max_resource,
        reduction_factor=reduction_factor,
        bootstrap_count=bootstrap_count,
    )


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"hyperband": hyperband}
