"""Random search: draws every decision independently.

Source: J. Bergstra, Y. Bengio: Random Search for Hyper-Parameter Optimization, JMLR 13, 2012.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def random(*, seed: int | None = None) -> optuna.samplers.BaseSampler:
    """Draw each decision from its distribution, independently of earlier trials."""
    return optuna.samplers.RandomSampler(seed=seed)


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"random": random}
