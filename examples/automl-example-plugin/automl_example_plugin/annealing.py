"""Annealing: random steps from good trials, with a rising standard over time.

Source: S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi: Optimization by Simulated Annealing, Science
220, 1983. It uses ranks instead of differences between values, so that the temperature has the
same meaning for every metric.
"""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import automl
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class Annealing(optuna.samplers.RandomSampler):
    """Takes a random step from a complete trial, chosen by rank; the first trials are random.

    Args:
        warmup: The number of random trials at the start.
        temperature: About how many of the best trials to start from after the warm-up.
        cooling: The factor of the temperature for each later trial.
        step: The size of a step as a share of a number's range; also the probability that a
            choice is drawn again.
        seed: The seed of the random draws.
    """

    def __init__(
        self,
        *,
        warmup: int = 5,
        temperature: float = 2.0,
        cooling: float = 0.95,
        step: float = 0.1,
        seed: int | None = None,
    ) -> None:
        super().__init__(seed=seed)
        self.warmup, self.temperature, self.cooling, self.step = warmup, temperature, cooling, step
        self.random = random.Random(seed)
        self._from: tuple[int, FrozenTrial | None] = (-1, None)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Take a step from the chosen trial's decision, if it has one with this distribution."""
        # All decisions of a trial start from the same earlier trial.
        if self._from[0] != trial.number:
            self._from = (trial.number, self._choose(study))
        chosen = self._from[1]
        if chosen is None or chosen.distributions.get(param_name) != param_distribution:
            return super().sample_independent(study, trial, param_name, param_distribution)
        return self._near(chosen.params[param_name], param_distribution)

    def _choose(self, study: optuna.Study) -> FrozenTrial | None:
        """Choose a complete trial; the lower the temperature, the more often one of the best."""
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(done) < self.warmup or not done:
            return None
        if len(study.directions) > 1:
            return self.random.choice(study.best_trials)
        maximized = study.direction is StudyDirection.MAXIMIZE
        ranked = sorted(done, key=lambda trial: trial.value or 0.0, reverse=maximized)
        heat = max(self.temperature * self.cooling ** (len(done) - self.warmup), 0.1)
        weights = [math.exp(-rank / heat) for rank in range(len(ranked))]
        return self.random.choices(ranked, weights)[0]

    def _near(self, value: Any, among: BaseDistribution) -> Any:
        if isinstance(among, FloatDistribution | IntDistribution):
            return self._stepped(value, among)
        if isinstance(among, CategoricalDistribution) and self.random.random() < self.step:
            return self.random.choice(among.choices)
        return value

    def _stepped(self, value: float, among: FloatDistribution | IntDistribution) -> float:
        """Return a number near another, on the distribution's scale and steps."""
        ends = (among.low, among.high)
        low, high, at = map(math.log, (*ends, value)) if among.log else (*ends, value)
        moved = self.random.gauss(at, self.step * (high - low))
        moved = min(max(math.exp(moved) if among.log else moved, among.low), among.high)
        if among.step is not None:
            moved = among.low + among.step * round((moved - among.low) / among.step)
        # Rounding may exceed the bound.
        moved = min(moved, among.high)
        return int(moved) if isinstance(among, IntDistribution) else moved


@automl.hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    """Offer the strategy by its name."""
    return {"annealing": Annealing}
