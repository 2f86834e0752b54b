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
    """Take the next point of one sequence, which all workers of a study share.

    scramble: shuffle the sequence by the study's seed. The first trial is drawn at random, since
    it says which decisions there are; so are categorical ones and those of conditional spaces.
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
