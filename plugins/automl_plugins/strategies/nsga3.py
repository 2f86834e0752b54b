"""NSGA-III: evolution for many objectives, spread along reference directions.

Source: K. Deb, H. Jain: An Evolutionary Many-Objective Optimization Algorithm Using
Reference-Point-Based Nondominated Sorting Approach, Part I, 2014.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def nsga3(
    *,
    population: int = 50,
    crossover_prob: float = 0.9,
    swapping_prob: float = 0.5,
    mutation_prob: float | None = None,
    divisions: int = 3,
    seed: int | None = None,
) -> optuna.samplers.BaseSampler:
    """Cross and mutate the best of the last generation.

    population: trials a generation; the first one is drawn at random. crossover_prob: of a child
    of two parents instead of one; swapping_prob: of each decision to come from the second;
    mutation_prob: of each decision to be drawn anew, by default one in a trial.
    divisions: of each objective, which make the reference directions.

    Raises:
        ValueError: one of them cannot be.
    """
    if divisions < 1:
        raise ValueError(f"divisions must be at least 1, got {divisions}")
    return optuna.samplers.NSGAIIISampler(
        population_size=population,
        crossover_prob=crossover_prob,
        swapping_prob=swapping_prob,
        mutation_prob=mutation_prob,
        dividing_parameter=divisions,
        seed=seed,
    )


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"nsga3": nsga3}
