"""Hyperband: successive halvings side by side that stop at different times.

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
    """Give each trial to one of several halvings, from hasty to patient.

    min_resource: the first step at which the hastiest may stop a trial; max_resource: the last
    step of training, by default the largest that a complete trial reached; reduction_factor: one
    trial of so many goes on; bootstrap_count: trials to wait for at a step before any may go on.

    Raises:
        ValueError: one of them cannot be.
    """
    # Optuna looks at most of them only once it prunes.
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
