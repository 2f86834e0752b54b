"""Quasi-Monte Carlo: points that fill the space more evenly than random ones.

Source: J. Bergstra, Y. Bengio: Random Search for Hyper-Parameter Optimization, 2012; sequences of
I. M. Sobol', 1967, and J. H. Halton, 1960, as SciPy draws them.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import optuna

from automl import hookimpl


def qmc(
    *,
    sequence: Literal["sobol", "halton"] = "sobol",
    scramble: bool = True,
    study_seed: int | None = None,
) -> optuna.samplers.BaseSampler:
    """Take the next point of a sequence shared by all workers of a study.

    The first trial is random, because it determines the decisions. Categorical decisions and
    those of conditional spaces are always random.

    Args:
        sequence: The sequence.
        scramble: Whether to scramble the sequence with the study's seed.
        study_seed: The study's seed.
    """
    return optuna.samplers.QMCSampler(
        qmc_type=sequence,
        scramble=scramble,
        seed=study_seed,
        warn_asynchronous_seeding=False,
        warn_independent_sampling=False,
    )


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"qmc": qmc}
