"""Median stopping: stops a trial that is worse than half of the others at the same step.

Source: D. Golovin et al.: Google Vizier, 2017, section 3.2.2.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def median(
    *,
    startup_trials: int = 5,
    warmup_steps: int = 0,
    interval_steps: int = 1,
    min_trials: int = 1,
    percentile: float = 50.0,
) -> optuna.pruners.BasePruner:
    """Stop a trial whose best report is worse than the median of the others at that step.

    Args:
        startup_trials: The number of trials that must finish first.
        warmup_steps: No trial is stopped before this step.
        interval_steps: The number of steps between checks.
        min_trials: The number of trials that must have reached the step.
        percentile: The percentile to compare with: 50 is the median, and 25 stops all but the
            best quarter.
    """
    return optuna.pruners.PercentilePruner(
        percentile,
        n_startup_trials=startup_trials,
        n_warmup_steps=warmup_steps,
        interval_steps=interval_steps,
        n_min_trials=min_trials,
    )


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"median": median}
