"""Gaussian processes: a model of few trials, for expensive evaluations.

Source: D. R. Jones et al.: Efficient Global Optimization of Expensive Black-Box Functions, 1998,
with the kernels and the acquisition of Optuna's GPSampler.
"""

from collections.abc import Callable, Mapping

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from automl import hookimpl

_REFUSALS = 3
"""After this many refused candidates in a row, the next ones are random."""


class GaussianProcess(optuna.samplers.GPSampler):
    """Optuna's sampler, with random draws after repeated refusals.

    A candidate that costs more than the study allows is not trained, so it has no value to model.
    The model does not change, and would propose similar candidates again.
    """

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        last = study.get_trials(deepcopy=False, states=finished)[-_REFUSALS:]
        if len(last) == _REFUSALS and all(_was_refused(each) for each in last):
            return {}
        return super().infer_relative_search_space(study, trial)


def _was_refused(trial: FrozenTrial) -> bool:
    broken = any(excess > 0 for excess in trial.constraints.values())
    return broken and trial.state is TrialState.PRUNED and not trial.intermediate_values


def gp(
    *,
    startup_trials: int = 10,
    deterministic: bool = False,
    seed: int | None = None,
) -> optuna.samplers.BaseSampler:
    """Propose the candidate with the largest expected improvement under a Gaussian process.

    The time per proposal grows with the cube of the number of trials: use it for hundreds of
    trials, not thousands.

    Args:
        startup_trials: The number of random trials before the model is used.
        deterministic: Whether the same decisions always give the same value, so that no noise is
            modeled.
        seed: The seed of the random draws.

    Raises:
        ValueError: The number of trials is negative.
    """
    if startup_trials < 0:
        raise ValueError(f"startup_trials must not be negative, got {startup_trials}")
    return GaussianProcess(
        n_startup_trials=startup_trials,
        deterministic_objective=deterministic,
        # Decisions of conditional spaces are random by design; do not warn in every trial.
        warn_independent_sampling=False,
        seed=seed,
    )


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"gp": gp}
