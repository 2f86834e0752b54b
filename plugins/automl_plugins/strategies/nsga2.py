"""NSGA-II: evolution for several objectives, by dominance and crowding.

Source: K. Deb et al.: A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, 2002.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import hookimpl


def nsga2(
    *,
    population: int = 50,
    crossover_prob: float = 0.9,
    swapping_prob: float = 0.5,
    mutation_prob: float | None = None,
    seed: int | None = None,
) -> optuna.samplers.BaseSampler:
    """Cross and mutate the best of the last generation.

    population: trials a generation; the first one is drawn at random. crossover_prob: of a child
    of two parents instead of one; swapping_prob: of each decision to come from the second;
    mutation_prob: of each decision to be drawn anew, by default one in a trial.
    """
    return optuna.samplers.NSGAIISampler(
        population_size=population,
        crossover_prob=crossover_prob,
        swapping_prob=swapping_prob,
        mutation_prob=mutation_prob,
        seed=seed,
    )


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"nsga2": nsga2}
