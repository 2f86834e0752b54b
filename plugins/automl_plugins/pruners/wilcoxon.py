"""Wilcoxon's signed-rank test: a trial ends when it is surely worse on the same instances.

Source: F. Wilcoxon: Individual Comparisons by Ranking Methods, 1945.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def wilcoxon(*, p_threshold: float = 0.1, startup_steps: int = 2) -> optuna.pruners.BasePruner:
    """Stop a trial that is worse than the best one, step by step, with this significance.

    For trainers whose steps are instances, such as the folds of a cross-validation, not epochs.
    startup_steps: no test before.
    """
    return optuna.pruners.WilcoxonPruner(p_threshold=p_threshold, n_startup_steps=startup_steps)


@hookimpl
def register_pruners() -> Mapping[str, Callable[..., optuna.pruners.BasePruner]]:
    return {"wilcoxon": wilcoxon}
