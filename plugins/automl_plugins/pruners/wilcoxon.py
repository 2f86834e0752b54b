"""Wilcoxon's signed-rank test: stops a trial that is significantly worse on the same instances.

Source: F. Wilcoxon: Individual Comparisons by Ranking Methods, 1945.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def wilcoxon(*, p_threshold: float = 0.1, startup_steps: int = 2) -> optuna.pruners.BasePruner:
    """Stop a trial that is significantly worse than the best one, compared step by step.

    Use it for trainers whose steps are instances, such as the folds of a cross-validation,
    instead of epochs.

    Args:
        p_threshold: The significance level of the test.
        startup_steps: No trial is stopped before this step.
    """
    return optuna.pruners.WilcoxonPruner(p_threshold=p_threshold, n_startup_steps=startup_steps)


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"wilcoxon": wilcoxon}
