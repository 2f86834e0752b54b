"""Implicit: tunes open hyperparameters by the implicit function theorem while it trains.

Sources: J. Lorraine, P. Vicol, D. Duvenaud: Optimizing Millions of Hyperparameters by Implicit
Differentiation, arXiv 1911.02590; F. Pedregosa: Hyperparameter optimization with approximate
gradient, arXiv 1602.02355.
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ClassVar

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor

from automl import (
    Candidate,
    Need,
    Open,
    Report,
    Run,
    Split,
    Task,
    Trainer,
    TrialError,
    Unconstrained,
    Use,
    UseKind,
    hookimpl,
)
from automl_plugins._bilevel.candidate_problem import CandidateProblem
from automl_plugins._bilevel.hypergradients import (
    Hypergradient,
    Method,
    conjugate_gradient,
    finite_difference,
    neumann,
    t1t2,
)
from automl_plugins._bilevel.outer import Outer, divided
from automl_plugins._bilevel.variables import EXAMPLE_WEIGHTS, Variables, fixed_hyperparameters
from automl_plugins._training.epochs import by_epochs, loading
from automl_plugins._training.examples import Examples
from automl_plugins._training.loop import Best, Loop
from automl_plugins._training.ranges import COUNT, NOT_NEGATIVE, POSITIVE, member, within
from automl_plugins._training.settings import Settings
from automl_plugins._training.values import Values

_log = logging.getLogger("automl")

_IN_THE_LOSS = ("l2", "label_smoothing", EXAMPLE_WEIGHTS)
"""The hyperparameters with respect to which the training loss has a derivative."""


class Way(Enum):
    """How a hypergradient is computed.

    CG solves the linear system by conjugate gradients, NEUMANN by a truncated series. T1T2 takes
    the Hessian for the identity. FINITE_DIFFERENCE is CG with differences of gradients.
    """

    CG = "cg"
    NEUMANN = "neumann"
    T1T2 = "t1t2"
    FINITE_DIFFERENCE = "finite_difference"


class Curvature(Enum):
    """The matrix of the linear system; Gauss-Newton's is never indefinite."""

    GAUSS_NEWTON = "gauss_newton"
    HESSIAN = "hessian"


@dataclass(frozen=True)
class Implicit(Settings, Trainer):
    """Trains like `supervised`, and tunes open hyperparameters by gradients of another loss.

    It opens decisions on numbers that the training loss depends on smoothly: the hyperparameters
    `l2`, `label_smoothing` and `example_weights`, and those of layers. It ends with the weights and
    values of the best epoch.

    Attributes:
        outer: The examples of the outer loss.
        share: The share of the training examples for `outer=share`.
        method: How a hypergradient is computed.
        curvature: The matrix of the linear system, for `cg` and `neumann`.
        iterations: The largest number of products for one linear system.
        tolerance: The relative residual at which a solver stops.
        damping: A number added to the diagonal of the matrix.
        outer_lr: The learning rate of the unconstrained hyperparameters, with Adam.
        outer_batch_size: The number of examples in a hypergradient, of either loss.
        untuned_epochs: The number of epochs before the first step of the hyperparameters, at most
            half of all epochs.
        inner_steps: The number of training steps before each step of the hyperparameters.

    Raises:
        ValueError: A value is out of its range.
    """

    trainer: ClassVar[str] = "implicit"
    replays: ClassVar[bool] = True

    outer: Outer = field(default=Outer.VALIDATION, metadata=member(Outer))
    share: float = field(
        default=0.2, metadata=within("a number between 0 and 1", float, lambda x: 0 < x < 1)
    )
    method: Way = field(default=Way.CG, metadata=member(Way))
    curvature: Curvature = field(default=Curvature.GAUSS_NEWTON, metadata=member(Curvature))
    iterations: int = field(default=10, metadata=COUNT)
    tolerance: float = field(default=1e-3, metadata=NOT_NEGATIVE)
    damping: float = field(default=1e-2, metadata=NOT_NEGATIVE)
    outer_lr: float = field(default=0.1, metadata=POSITIVE)
    outer_batch_size: int = field(default=512, metadata=COUNT)
    untuned_epochs: int = field(
        default=5, metadata=within("a whole number, at least 0", int, lambda n: n >= 0)
    )
    inner_steps: int = field(default=5, metadata=COUNT)

    def opens(self, decision: Open) -> bool:
        if any(use.attribute == "weight_decay" for use in decision.uses):
            _warn_of_weight_decay(decision.name)
        numeric = isinstance(decision.distribution, FloatDistribution)
        if not numeric or not decision.uses or decision.distribution.single():
            return False
        smooth = Unconstrained(decision.distribution).differentiable
        return smooth and all(map(_is_smooth, decision.uses))

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        """Train, and report the values so far after each epoch.

        Raises:
            TrialError: The trainer does not know a hyperparameter, the method needs something that
                the candidate or the task does not offer, or there are no examples for the outer
                loss.
            NotFiniteError: The training loss is NaN or infinite.
        """
        settings = self.configured(fixed_hyperparameters(candidate)).for_run(run)
        # As a judge, it follows what was found, and tunes nothing.
        opened = candidate.open_decisions.keys() - candidate.found.keys()
        kind = _Tuning if opened else Loop
        yield from by_epochs(lambda: kind(settings, candidate, task, run), run)

    def unread(self, candidate: Candidate) -> frozenset[str]:
        return self.unread_by(candidate.hyperparameters)

    def hypergradients(self, lr: float) -> Method:
        """Return the method.

        Args:
            lr: The learning rate of the training.
        """
        limits = self.iterations, self.tolerance, self.damping
        gauss_newton = self.curvature is Curvature.GAUSS_NEWTON
        if self.method is Way.CG:
            return conjugate_gradient(*limits, gauss_newton=gauss_newton)
        if self.method is Way.NEUMANN:
            return neumann(*limits, gauss_newton=gauss_newton)
        return t1t2(lr) if self.method is Way.T1T2 else finite_difference(*limits)


def _is_smooth(use: Use) -> bool:
    if use.kind is UseKind.HYPERPARAMETER:
        return use.attribute in _IN_THE_LOSS
    return use.kind in (UseKind.ATTRIBUTE, UseKind.LAYER) and use.differentiable


@functools.cache
def _warn_of_weight_decay(name: str) -> None:
    _log.warning(
        "trainer implicit does not tune %r: the loss does not depend on a decoupled weight decay; "
        "a space may offer l2 instead",
        name,
    )


class _Tuning(Loop):
    """A training in which the open decisions change every few steps."""

    settings: Implicit

    def __init__(self, settings: Implicit, candidate: Candidate, task: Task, run: Run) -> None:
        self._rows, self._outer = divided(
            settings.outer, settings.share, task, run, settings.trainer
        )
        super().__init__(settings, candidate, task, run)
        self._variables = Variables(candidate, self.module, len(self.examples), self.device)
        self._problem = CandidateProblem(self, self._variables, self._outer)
        self._check()
        self._last: dict[str, float] = {}
        self._noticed = Counter(outer_steps=0, skipped_steps=0, negative_curvature=0)

    def _check(self) -> None:
        """Check once, before the training, that hypergradients can be computed.

        Raises:
            TrialError: They cannot, and why.
        """
        if self.run.micro_batches > 1:
            raise TrialError(
                "trainer implicit retains the graph of a whole batch, so it cannot use "
                "micro-batches: the trial ran out of memory with "
                f"outer_batch_size={self.settings.outer_batch_size}; choose a smaller one"
            )
        needs = self._method().needs
        if self._variables.per_example:
            needs |= {Need.PER_SAMPLE}
        self._problem.check(f"trainer implicit with method={self.settings.method.value}", needs)

    def training_examples(self) -> Examples:
        examples = super().training_examples()
        if len(self._rows) == len(examples):
            return examples
        return Examples(examples.inputs[self._rows], examples.targets[self._rows])

    def values(self, rows: Tensor) -> Values:
        with torch.no_grad():
            return self._variables.values(self._variables.phi, rows)

    def measured(self) -> dict[str, float]:
        outputs = self.outputs(self.validation)
        measured = dict(self.task.evaluate(outputs, self.validation.targets))
        if self.settings.outer is Outer.SHARE:
            outputs = self.outputs(self._outer)
        outer_loss = float(self.task.loss(outputs, self._outer.targets).detach())
        return {**measured, "outer_loss": outer_loss, **self._noticed, **self._last}

    def keeps_best(self) -> bool:
        # Before the first step, decisions have the values of their middle, which nobody chose.
        return self._noticed["outer_steps"] > 0 or self.finished

    def improved(self, best: Best) -> bool:
        # By what the decisions are tuned for, rather than by the task's first metric.
        before = best.metrics["outer_loss"]
        return math.isnan(before) or self.metrics["outer_loss"] < before

    def noted(self) -> dict[str, Any]:
        return {"phi": self._variables.copy()}

    def epoch(self) -> None:
        self._variables.note_epoch()
        super().epoch()

    def after_step(self) -> None:
        untuned = min(self.settings.untuned_epochs, self.settings.epochs // 2)
        if self.epochs > untuned and self.steps % self.settings.inner_steps == 0:
            self._outer_step()

    def _outer_step(self) -> None:
        """Move the hyperparameters along a hypergradient, unless it is not finite."""
        seed = self.run.seed_for("outer", self.steps)
        found = self._method().hypergradient(
            self._problem,
            self._problem.weights(),
            self._variables.phi,
            self._drawn(Split.TRAIN, len(self.examples), seed),
            self._drawn(Split.VALIDATION, len(self._outer), seed),
            seed,
        )
        self.counts.update(found.counts)
        # The outer loss's gradient is one, too.
        self.counts.update(inner_gradients=1, lower_solves=1)
        self._noticed.update(outer_steps=1, negative_curvature=found.solution.negative_curvature)
        if math.isfinite(found.norm()):
            self._variables.step(found.by_outer, self.settings.outer_lr)
            self._last = _described(found)
        else:
            self._noticed.update(skipped_steps=1)

    def _drawn(self, split: Split, examples: int, seed: int) -> Any:
        rows = torch.arange(examples)
        if examples > self.settings.outer_batch_size:
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randperm(examples, generator=generator)[: self.settings.outer_batch_size]
        return self._problem.batch(split, rows)

    def _method(self) -> Method:
        return self.settings.hypergradients(self.optimizer.param_groups[0]["lr"])

    def report(self) -> Report:
        best = self.best
        phi = self._variables.phi if best is None else best.noted["phi"]
        closed = self._variables.closed(phi)
        until = self.epochs if best is None else best.epoch
        found = self._variables.schedules(until, closed, self.settings.epochs)
        every = len(self.task.split(Split.TRAIN)[1])
        return replace(
            super().report(),
            closed=closed,
            found={**found, **self._variables.by_example(phi, self._rows, every)},
        )

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "variables": self._variables.state(),
            "noticed": dict(self._noticed),
            "last": dict(self._last),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        with loading(self.run):
            self._variables.load(state["variables"])
            self._noticed, self._last = Counter(state["noticed"]), dict(state["last"])


def _described(found: Hypergradient) -> dict[str, float]:
    """Return what a report says about a hypergradient."""
    residual = found.solution.residual
    described = {"hypergradient_norm": found.norm()}
    return described if residual is None else {**described, "residual": residual}


@hookimpl
def register_trainers() -> Mapping[str, Callable[..., Trainer]]:
    return {"implicit": Implicit}
