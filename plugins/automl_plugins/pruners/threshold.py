"""Thresholds: a trial ends when a report leaves a range that it must keep to."""

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
    """Stop a trial that reports less than `lower`, more than `upper`, or no number.

    warmup_steps: no trial ends before that step; interval_steps: from one look to the next. One
    of the bounds is needed.

    Raises:
        ValueError: there is none.
    """
    if lower is None and upper is None:
        raise ValueError("give it a bound: -o pruner.lower=X or -o pruner.upper=X")
    return optuna.pruners.ThresholdPruner(
        lower=lower, upper=upper, n_warmup_steps=warmup_steps, interval_steps=interval_steps
    )


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"threshold": threshold}
