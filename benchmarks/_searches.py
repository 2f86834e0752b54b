"""Searches that decide in different ways between a cache hit and an evaluation."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import optuna
from _problems import Decisions, Problem, Result
from automl_plugins.strategies.evolution import Evolution
from optuna.trial import TrialState

from automl.identity.fingerprint import Level

try:
    import pyglove as pg
except ImportError:
    pg = None

BEGINNING = 60
"""How many first proposals are reported on separately, besides all of them."""


class Kept(Enum):
    """How an arm recognises a candidate that it has evaluated."""

    NOTHING = "nothing"
    TRUTH = "truth"
    L0 = Level.L0
    L1 = Level.L1
    L2 = Level.L2


@dataclass(frozen=True)
class Arm:
    """One way to decide between a cache hit and an evaluation.

    Attributes:
        name: The arm's name.
        kept: How it recognises a candidate.
        refuses: Whether constant functions fail without an evaluation.
        mutates: Whether the strategy mutates until the function changes (FCM).
        pyglove: Whether PyGlove's wrapper decides.
    """

    name: str
    kept: Kept
    refuses: bool = False
    mutates: bool = False
    pyglove: bool = False

    def key(self, problem: Problem, made: Decisions) -> Hashable | None:
        """Return the key of a candidate's result in the cache, None without a cache."""
        if self.kept is Kept.NOTHING:
            return None
        level = self.kept.value if isinstance(self.kept.value, Level) else None
        return problem.function(made, level)


@dataclass(frozen=True)
class Strategy:
    """Makes a sampler.

    Attributes:
        name: The strategy's name.
        make: Makes the sampler, given a seed.
        blind: Whether proposals are independent of results.
    """

    name: str
    make: Callable[..., optuna.samplers.BaseSampler]
    blind: bool = False


def _random(seed: int, **_: Any) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


STRATEGIES = (
    Strategy("evolution 100/25", partial(Evolution, population=100, tournament=25)),
    Strategy("evolution 25/5", partial(Evolution, population=25, tournament=5)),
    Strategy("random", _random, blind=True),
)


class Proposal(NamedTuple):
    """Decisions, and the index of the choice that each of them made."""

    made: Decisions
    numbers: tuple[int, ...]


class Step(NamedTuple):
    """One proposal, its result, and whether it was evaluated."""

    proposal: Proposal
    result: Result
    paid: bool


class Proposals(Protocol):
    """A source of proposals that gets the result of each before it makes the next."""

    def ask(self) -> Proposal: ...

    def tell(self, value: float | None) -> None: ...


class Live:
    """An Optuna study in memory."""

    def __init__(self, problem: Problem, strategy: Strategy, arm: Arm, seed: int) -> None:
        more = {"new_function": True, "context": Functions(problem)} if arm.mutates else {}
        sampler = strategy.make(seed=seed, **more)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.problem = problem

    def ask(self) -> Proposal:
        self.trial = self.study.ask()
        self.problem.suggest(self.trial)
        made = self.trial.params
        choices = self.trial.distributions.items()
        return Proposal(made, tuple(int(d.to_internal_repr(made[name])) for name, d in choices))

    def tell(self, value: float | None) -> None:
        if value is None:
            self.study.tell(self.trial, state=TrialState.FAIL)
        else:
            self.study.tell(self.trial, value)


class DivergedError(Exception):
    """This arm's proposals would differ from the recorded ones from here on."""


class Recorded:
    """The proposals of another arm.

    Samplers depend only on their seed and on the results they get, blind ones only on their seed.
    So the proposals are the same as long as the results are.
    """

    def __init__(self, strategy: Strategy, steps: Sequence[Step]) -> None:
        self.strategy, self.steps = strategy, iter(steps)

    def ask(self) -> Proposal:
        self.step = next(self.steps)
        return self.step.proposal

    def tell(self, value: float | None) -> None:
        if value != self.step.result.value and not self.strategy.blind:
            raise DivergedError


@dataclass(frozen=True)
class Functions:
    """The context that FCM asks for fingerprints, as the engine provides it, in memory."""

    problem: Problem

    def fingerprint(self, made: Decisions) -> str | None:
        try:
            return repr(self.problem.function(made, Level.L2))
        except ValueError:
            return None

    def means(self) -> Mapping[int, tuple[float, ...]]:
        return {}


def ours(problem: Problem, arm: Arm, proposals: Proposals) -> Iterator[Step]:
    """Look up or evaluate each proposal; results are cached in memory, failures are not."""
    known: dict[Hashable, Result] = {}
    while True:
        proposal = proposals.ask()
        key = arm.key(problem, proposal.made)
        if arm.refuses and problem.is_constant(proposal.made):
            result, paid = Result(None, 0.0), False
        elif key is not None and key in known:
            result, paid = known[key], False
        else:
            result, paid = problem.evaluate(proposal.made), True
            if key is not None and result.value is not None:
                known[key] = result
        proposals.tell(result.value)
        yield Step(proposal, result, paid)


def with_pyglove(problem: Problem, arm: Arm, proposals: Proposals) -> Iterator[Step]:
    """Like `ours`, but PyGlove's wrapper around the same proposals decides what to evaluate."""

    class Inner(pg.geno.DNAGenerator):  # type: ignore[misc,name-defined]
        def _propose(self) -> Any:
            self.proposal = proposals.ask()
            return pg.DNA(list(self.proposal.numbers))

        def _feedback(self, dna: Any, reward: float) -> None:
            proposals.tell(reward)

    deduping = pg.geno.Deduping(Inner(), auto_reward_fn=lambda rewards: rewards[0])
    deduping.setup(pg.geno.space([]))
    while True:
        dna = deduping.propose()
        proposal = deduping.generator.proposal
        served = dna.metadata.get("reward")
        result = problem.evaluate(proposal.made) if served is None else Result(served, 0.0)
        if result.value is None:
            proposals.tell(None)
        else:
            deduping.feedback(dna, result.value)
        yield Step(proposal, result, served is None)


def search(
    problem: Problem, strategy: Strategy, arm: Arm, seed: int, count: int, base: Sequence[Step] = ()
) -> list[Step]:
    """Run an arm, and reuse the proposals of another arm if they are provably the same.

    Args:
        problem: The problem to search.
        strategy: Makes the sampler.
        arm: Decides between hits and evaluations.
        seed: The sampler's seed.
        count: How many proposals to make.
        base: The steps of another arm under the same seed.
    """
    decide = with_pyglove if arm.pyglove else ours
    if base and not arm.mutates:
        try:
            return list(islice(decide(problem, arm, Recorded(strategy, base)), count))
        except DivergedError:
            pass
    return list(islice(decide(problem, arm, Live(problem, strategy, arm, seed)), count))


class Best(NamedTuple):
    """A new best value, with the evaluations and hours spent until then."""

    value: float
    evaluations: int
    hours: float


@dataclass(frozen=True)
class Curve:
    """One run.

    Attributes:
        bests: Each new best value, in order.
        early: Evaluations in the first `BEGINNING` proposals.
        paid: Evaluations in the complete run.
        proposals: The number of proposals.
    """

    bests: tuple[Best, ...]
    early: int
    paid: int
    proposals: int

    @classmethod
    def of(cls, steps: Sequence[Step]) -> "Curve":
        bests: list[Best] = []
        paid, hours, early = 0, 0.0, 0
        for number, step in enumerate(steps, 1):
            paid += step.paid
            hours += step.result.hours * step.paid
            value = step.result.value
            if value is not None and (not bests or value > bests[-1].value):
                bests.append(Best(value, paid, hours))
            if number == BEGINNING:
                early = paid
        return cls(tuple(bests), early or paid, paid, len(steps))

    def reached(self, target: float) -> Best | None:
        return next((best for best in self.bests if best.value >= target), None)

    def value_after(self, evaluations: int) -> float:
        """Return the best value after this many evaluations, minus infinity if there is none."""
        bought = [best.value for best in self.bests if best.evaluations <= evaluations]
        return bought[-1] if bought else -math.inf


def curves(
    problem: Problem, strategy: Strategy, arms: Sequence[Arm], seed: int, count: int
) -> dict[str, Curve]:
    """Run every arm under one seed."""
    base = search(problem, strategy, arms[0], seed, count)
    found = {arms[0].name: Curve.of(base)}
    for arm in arms[1:]:
        if not (arm.mutates and strategy.blind):
            found[arm.name] = Curve.of(search(problem, strategy, arm, seed, count, base))
    return found
