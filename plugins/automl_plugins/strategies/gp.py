"""Gaussian processes: a model of few trials, for evaluations that cost much.

Source: D. R. Jones et al.: Efficient Global Optimization of Expensive Black-Box Functions, 1998,
with the kernels and the acquisition of Optuna's GPSampler.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def gp(
    *,
    startup_trials: int = 10,
    deterministic: bool = False,
    seed: int | None = None,
) -> optuna.samplers.BaseSampler:
    """Propose what a Gaussian process expects to improve most.

    startup_trials: drawn at random before the model is used; deterministic: whether the same
    decisions always give the same value, so that no noise is modelled. A trial costs time that
    grows with the cube of their number: for hundreds of trials, not thousands.
    """
    return optuna.samplers.GPSampler(
        n_startup_trials=startup_trials,
        deterministic_objective=deterministic,
        # Decisions of conditional spaces are drawn at random; that is no news in each trial.
        warn_independent_sampling=False,
        seed=seed,
    )


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"gp": gp}
