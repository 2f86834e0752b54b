"""Regularized evolution: mutates the winner of a tournament; the oldest trials drop out.

Source: E. Real, A. Aggarwal, Y. Huang, Q. V. Le: Regularized Evolution for Image Classifier
Architecture Search, arXiv 1802.01548, algorithm 1. The tournament here draws distinct members.
"""

import math
import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl import Context, contains, hookimpl

_FEW = 10
"""With at most this many values, a mutation takes any other; with more, it takes a step."""
_STEP = 0.2
"""The standard deviation of a mutation, as a share of a decision's range."""
_TRIES = 100

Numeric = FloatDistribution | IntDistribution


@dataclass(frozen=True)
class _Plan:
    """The decisions that a child copies from its parent, and the one that it changes.

    Attributes:
        parent: The parent's decisions.
        mutated: The name of the decision to change.
        value: Its new value; None if it is drawn later.
    """

    parent: Mapping[str, Any]
    mutated: str
    value: Any = None


@dataclass
class Evolution(optuna.samplers.BaseSampler):
    """Change one decision of a good recent trial; works define-by-run.

    Each choice depends only on the seed, the trial's number, the decision's name and the finished
    trials, so that any process that resumes a study proposes the same.

    Attributes:
        population: The number of latest finished trials that may become parents. Until there are
            that many, decisions are random.
        tournament: The number of them drawn to compete. With several objectives, a non-dominated
            one wins; with constraints, only those that violate them least compete.
        new_function: Mutate the parent again, at most 100 times, until the child computes a
            different function (arXiv 2302.05433). In plain Optuna, functions cannot be compared,
            and the first child is used.
        seed: The seed of the random draws.
        context: Provided by the engine.

    Raises:
        ValueError: The population or the tournament is invalid.
    """

    population: int = 25
    tournament: int = 5
    new_function: bool = False
    seed: int | None = None
    context: Context | None = None
    _plans: dict[int, _Plan | None] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.tournament <= self.population:
            raise ValueError(
                f"tournament must be between 1 and the population ({self.population}), "
                f"got {self.tournament}"
            )
        self._entropy = secrets.randbits(128) if self.seed is None else self.seed

    def reseed_rng(self) -> None:
        self._entropy = secrets.randbits(128)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        rng = self._rng(trial, param_name)
        plan = self._plan(study, trial)
        if plan is not None and param_name in plan.parent:
            value = plan.parent[param_name]
            if contains(param_distribution, value):
                if param_name != plan.mutated:
                    return value
                if plan.value is not None and contains(param_distribution, plan.value):
                    return plan.value
                return mutate(param_distribution, value, rng)
        uniform = optuna.samplers.RandomSampler(seed=int(rng.integers(2**32)))
        return uniform.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._plans.pop(trial.number, None)

    def _plan(self, study: optuna.Study, trial: FrozenTrial) -> _Plan | None:
        # Only one thread uses each number, so no lock is needed.
        if trial.number not in self._plans:
            self._plans[trial.number] = self._make_plan(study, trial)
        return self._plans[trial.number]

    def _make_plan(self, study: optuna.Study, trial: FrozenTrial) -> _Plan | None:
        members = self._members(study)
        if len(members) < self.population:
            return None
        rng = self._rng(trial, "")
        drawn = rng.choice(len(members), self.tournament, replace=False)
        means = self.context.means() if self.context else {}
        winners = best(allowed([members[i] for i in sorted(drawn)]), study.directions, means)
        parent = winners[rng.integers(len(winners))]
        # A decision of one value cannot change.
        free = [name for name, d in parent.distributions.items() if not d.single()]
        if not free:
            return None
        plan = _Plan(parent.params, free[rng.integers(len(free))])
        if not self.new_function or self.context is None:
            return plan
        return self._new_function(self.context, parent, free, rng)

    def _new_function(
        self, context: Context, parent: FrozenTrial, free: list[str], rng: np.random.Generator
    ) -> _Plan:
        """Find a mutation after which the parent computes a different function, if possible."""
        own = context.fingerprint(parent.params)
        for _ in range(_TRIES):
            name = free[rng.integers(len(free))]
            value = mutate(parent.distributions[name], parent.params[name], rng)
            # Without a fingerprint the child has new decisions, so its function is new.
            found = context.fingerprint({**parent.params, name: value})
            if found is None or found != own:
                break
        return _Plan(parent.params, name, value)

    def _members(self, study: optuna.Study) -> list[FrozenTrial]:
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        return [trial for trial in finished if trial.values][-self.population :]

    def _rng(self, trial: FrozenTrial, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self._entropy, trial.number, zlib.crc32(purpose.encode())])


def allowed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that violate their constraints least; often these violate none.

    A missing value of a constraint, as after early stopping, counts as infinitely violated.

    Source: K. Deb: An Efficient Constraint Handling Method for Genetic Algorithms, 2000.
    """
    names = {name for trial in trials for name in trial.constraints}
    excess = [
        sum(max(0.0, trial.constraints.get(name, math.inf)) for name in names) for trial in trials
    ]
    return [trial for trial, own in zip(trials, excess, strict=True) if own == min(excess)]


def best(
    trials: Sequence[FrozenTrial],
    directions: Sequence[StudyDirection],
    means: Mapping[int, Sequence[float]] = MappingProxyType({}),
) -> list[FrozenTrial]:
    """Return the trials that no other dominates; with one objective, the best and its equals.

    Args:
        trials: The trials to compare.
        directions: The direction of each objective.
        means: Values by trial number that replace a trial's own.
    """
    signs = np.where([d == StudyDirection.MAXIMIZE for d in directions], -1.0, 1.0)
    costs = np.array([means.get(trial.number, trial.values) for trial in trials]) * signs
    no_worse = np.all(costs[:, None] <= costs, axis=-1)
    better = np.any(costs[:, None] < costs, axis=-1)
    dominated = np.any(no_worse & better, axis=0)
    return [trial for trial, lost in zip(trials, dominated.tolist(), strict=True) if not lost]


def mutate(distribution: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    """Return another value of the distribution: any if there are few, otherwise a Gaussian step.

    The step is taken in the unit interval, logarithmic if the distribution is, and reflected at its
    ends. A distribution with a single value returns that value.
    """
    if distribution.single():
        return value
    if isinstance(distribution, CategoricalDistribution):
        own = int(distribution.to_internal_repr(value))
        return distribution.choices[_other(own, len(distribution.choices), rng)]
    assert isinstance(distribution, Numeric)
    count = _count(distribution)
    if count <= _FEW:
        own = _index(distribution, value)
        return _round(distribution, _at(distribution, _other(own, int(count), rng)))
    return _step_away(distribution, value, rng)


def _other(own: int, count: int, rng: np.random.Generator) -> int:
    """Return a random number below `count` that is not `own`."""
    other = int(rng.integers(count - 1))
    return other + (other >= own)


def _step_away(distribution: Numeric, value: float, rng: np.random.Generator) -> float:
    for _ in range(_TRIES):
        unit = _reflect(_to_unit(distribution, value) + rng.normal(0, _STEP))
        other = _from_unit(distribution, unit)
        if not math.isclose(other, value, rel_tol=1e-12):
            return other
    return distribution.low if value == distribution.high else distribution.high


def _count(distribution: Numeric) -> float:
    """Return the number of values."""
    if not distribution.step:
        return math.inf
    return _index(distribution, distribution.high) + 1


def _index(distribution: Numeric, value: float) -> int:
    return round((value - distribution.low) / (distribution.step or 1))


def _at(distribution: Numeric, index: int) -> float:
    return distribution.low + index * (distribution.step or 1)


def _to_unit(distribution: Numeric, value: float) -> float:
    low, high, value = _scaled(distribution, distribution.low, distribution.high, value)
    return (value - low) / (high - low)


def _from_unit(distribution: Numeric, unit: float) -> float:
    low, high = _scaled(distribution, distribution.low, distribution.high)
    value = low + unit * (high - low)
    return _round(distribution, math.exp(value) if distribution.log else value)


def _scaled(distribution: Numeric, *values: float) -> list[float]:
    return [math.log(value) for value in values] if distribution.log else list(values)


def _reflect(unit: float) -> float:
    """Fold the real line into [0, 1] at its ends."""
    folded = unit % 2
    return min(folded, 2 - folded)


def _round(distribution: Numeric, value: float) -> float:
    """Return the nearest value of the distribution."""
    if distribution.step:
        value = _at(distribution, _index(distribution, value))
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


@hookimpl
def register_strategies() -> Mapping[str, Callable[..., optuna.samplers.BaseSampler]]:
    return {"evolution": Evolution}
