"""TPE: the tree-structured Parzen estimator, Optuna's default.

Source: S. Watanabe: Tree-Structured Parzen Estimator, arXiv 2304.11127.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def tpe(
    *,
    startup_trials: int = 10,
    candidates: int = 24,
    multivariate: bool = True,
    group: bool = False,
    constant_liar: bool = True,
    seed: int | None = None,
) -> optuna.samplers.BaseSampler:
    """Propose where good trials are dense and bad ones are not.

    startup_trials: drawn at random before the model is used; candidates: drawn from the model,
    of which the best is proposed; multivariate: model decisions jointly; group: model each group
    of decisions that occur together, for conditional spaces; constant_liar: keep parallel
    workers apart.
    """
    return optuna.samplers.TPESampler(
        n_startup_trials=startup_trials,
        n_ei_candidates=candidates,
        multivariate=multivariate,
        group=group,
        constant_liar=constant_liar,
        seed=seed,
    )


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"tpe": tpe}
