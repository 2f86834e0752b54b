"""Thresholds: stops a trial when a report leaves an allowed range."""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def threshold(
    *,
    lower: float | None = None,
    upper: float | None = None,
    warmup_steps: int = 0,
    interval_steps: int = 1,
) -> optuna.pruners.BasePruner:
    """Stop a trial that reports a value out of range, or NaN. At least one bound is needed.

    Args:
        lower: The lower bound.
        upper: The upper bound.
        warmup_steps: No trial is stopped before this step.
        interval_steps: The number of steps between checks.

    Raises:
        ValueError: No bound is given.
    """
    if lower is None and upper is None:
        raise ValueError("set a bound: -o pruner.lower=X or -o pruner.upper=X")
    return optuna.pruners.ThresholdPruner(
        lower=lower, upper=upper, n_warmup_steps=warmup_steps, interval_steps=interval_steps
    )


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"threshold": threshold}
