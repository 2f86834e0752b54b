"""Grid: every combination of a finite space, once.

Source: exhaustive search over a define-by-run space, as Optuna's BruteForceSampler does it.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def grid(*, seed: int | None = None) -> optuna.samplers.BaseSampler:
    """Try every combination once, and end the study when none is left.

    Every decision must have finitely many values: integers, choices, or floats with a step.
    """
    return optuna.samplers.BruteForceSampler(seed=seed)


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"grid": grid}
