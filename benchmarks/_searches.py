"""Searches under one way or another to decide between a hit and an evaluation."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import optuna
from _problems import Decisions, Problem, Told
from automl_plugins.strategies.evolution import Evolution
from optuna.trial import TrialState

from automl.identity.fingerprint import Level

try:
    import pyglove as pg
except ImportError:
    pg = None

BEGINNING = 60
"""So many proposals are looked at besides all of them."""


class Kept(Enum):
    """What an arm recognises a candidate by."""

    NOTHING = "nothing"
    TRUTH = "truth"
    L0 = Level.L0
    L1 = Level.L1
    L2 = Level.L2


@dataclass(frozen=True)
class Arm:
    """One way to decide between a hit and an evaluation.

    refuses: constant functions fail unpaid. mutates: FCM.
    """

    name: str
    kept: Kept
    refuses: bool = False
    mutates: bool = False
    pyglove: bool = False

    def key(self, problem: Problem, made: Decisions) -> Hashable | None:
        """What a result is kept under; None where nothing is kept."""
        if self.kept is Kept.NOTHING:
            return None
        level = self.kept.value if isinstance(self.kept.value, Level) else None
        return problem.function(made, level)


@dataclass(frozen=True)
class Strategy:
    """Makes a sampler. blind: it proposes the same whatever it is told."""

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
    """Decisions, and the number of the choice made by each of them."""

    made: Decisions
    numbers: tuple[int, ...]


class Step(NamedTuple):
    """One proposal, what the sampler was told of it, and whether it was paid for."""

    proposal: Proposal
    told: Told
    paid: bool


class Proposals(Protocol):
    """What proposes, and is told what each proposal came to before the next."""

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
    """Another arm would have proposed something else from here on."""


class Recorded:
    """What another arm proposed.

    Samplers depend on their seed and on what they are told alone, and a blind one on its seed: so
    the proposals are the same as long as the same is told.
    """

    def __init__(self, strategy: Strategy, steps: Sequence[Step]) -> None:
        self.strategy, self.steps = strategy, iter(steps)

    def ask(self) -> Proposal:
        self.step = next(self.steps)
        return self.step.proposal

    def tell(self, value: float | None) -> None:
        if value != self.step.told.value and not self.strategy.blind:
            raise DivergedError


@dataclass(frozen=True)
class Functions:
    """What FCM asks: the engine's context, from memory."""

    problem: Problem

    def fingerprint(self, made: Decisions) -> str | None:
        try:
            return repr(self.problem.function(made, Level.L2))
        except ValueError:
            return None

    def means(self) -> Mapping[int, tuple[float, ...]]:
        return {}


def ours(problem: Problem, arm: Arm, proposals: Proposals) -> Iterator[Step]:
    """Look up or pay; results are kept in memory, and failures are never served."""
    known: dict[Hashable, Told] = {}
    while True:
        proposal = proposals.ask()
        key = arm.key(problem, proposal.made)
        if arm.refuses and problem.is_constant(proposal.made):
            told, paid = Told(None, 0.0), False
        elif key is not None and key in known:
            told, paid = known[key], False
        else:
            told, paid = problem.evaluate(proposal.made), True
            if key is not None and told.value is not None:
                known[key] = told
        proposals.tell(told.value)
        yield Step(proposal, told, paid)


def pygloves(problem: Problem, arm: Arm, proposals: Proposals) -> Iterator[Step]:
    """The same where PyGlove's wrapper around the same proposals decides what is paid for."""

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
        told = problem.evaluate(proposal.made) if served is None else Told(served, 0.0)
        if told.value is None:
            proposals.tell(None)
        else:
            deduping.feedback(dna, told.value)
        yield Step(proposal, told, served is None)


def search(
    problem: Problem, strategy: Strategy, arm: Arm, seed: int, count: int, base: Sequence[Step] = ()
) -> list[Step]:
    """So many proposals; those of another arm as far as they are provably this one's, too."""
    decide = pygloves if arm.pyglove else ours
    if base and not arm.mutates:
        try:
            return list(islice(decide(problem, arm, Recorded(strategy, base)), count))
        except DivergedError:
            pass
    return list(islice(decide(problem, arm, Live(problem, strategy, arm, seed)), count))


class Best(NamedTuple):
    """A new best value, and what had been paid for by then."""

    value: float
    evaluations: int
    hours: float


@dataclass(frozen=True)
class Curve:
    """One run: its bests, and its evaluations after the beginning and at the end."""

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
            hours += step.told.hours * step.paid
            value = step.told.value
            if value is not None and (not bests or value > bests[-1].value):
                bests.append(Best(value, paid, hours))
            if number == BEGINNING:
                early = paid
        return cls(tuple(bests), early or paid, paid, len(steps))

    def reached(self, target: float) -> Best | None:
        return next((best for best in self.bests if best.value >= target), None)

    def value_after(self, evaluations: int) -> float:
        """The best value that so many evaluations bought; minus infinity without any."""
        bought = [best.value for best in self.bests if best.evaluations <= evaluations]
        return bought[-1] if bought else -math.inf


def curves(
    problem: Problem, strategy: Strategy, arms: Sequence[Arm], seed: int, count: int
) -> dict[str, Curve]:
    """Every arm under one seed."""
    base = search(problem, strategy, arms[0], seed, count)
    found = {arms[0].name: Curve.of(base)}
    for arm in arms[1:]:
        if not (arm.mutates and strategy.blind):
            found[arm.name] = Curve.of(search(problem, strategy, arm, seed, count, base))
    return found
