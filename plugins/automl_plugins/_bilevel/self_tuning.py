"""Training that tunes open decisions by the response of the network to them."""

import copy
import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from automl import Candidate, Open, Report, Run, Scope, Task, TrialError, Use, UseKind
from automl.nn import assigned
from automl_plugins._bilevel.outer import Outer, divided
from automl_plugins._bilevel.perturbed import Perturbed, schedule_of
from automl_plugins._bilevel.response import Signal, collapse, convert, responding_parameters
from automl_plugins._training.epochs import by_epochs, loading
from automl_plugins._training.examples import Examples
from automl_plugins._training.loop import Best, Loop
from automl_plugins._training.ranges import COUNT, NOT_NEGATIVE, POSITIVE, member, within
from automl_plugins._training.settings import Settings
from automl_plugins._training.values import Values

_log = logging.getLogger("automl")

_TUNED = ("l2", "label_smoothing", "mixup")
"""The trainers' hyperparameters that change the loss of a batch."""


@dataclass(frozen=True)
class SelfTuningSettings(Settings):
    """How to train and tune; the base class of the trainers that do so by responses.

    Attributes:
        outer: The examples that the decisions are tuned on.
        share: The share of the training examples for `outer=share`.
        untuned_epochs: The number of epochs before the first step of the hyperparameters, at most
            half of all epochs.
        inner_steps: The number of training steps before the next steps of the hyperparameters.
        outer_steps: The number of these steps.
        outer_lr: The learning rate of the unconstrained hyperparameters and of the scales of their
            perturbations.
        scale: The standard deviation of the perturbations at first.
        max_scale: The largest standard deviation.
        entropy: The weight of the perturbations' entropy, which keeps them from shrinking.

    Raises:
        ValueError: A value is out of its range.
    """

    outer: Outer = field(default=Outer.VALIDATION, metadata=member(Outer))
    share: float = field(
        default=0.2, metadata=within("a number between 0 and 1", float, lambda x: 0 < x < 1)
    )
    untuned_epochs: int = field(
        default=5, metadata=within("a whole number, at least 0", int, lambda n: n >= 0)
    )
    inner_steps: int = field(default=2, metadata=COUNT)
    outer_steps: int = field(default=1, metadata=COUNT)
    outer_lr: float = field(default=3e-3, metadata=POSITIVE)
    scale: float = field(default=0.5, metadata=POSITIVE)
    max_scale: float = field(default=1.0, metadata=POSITIVE)
    entropy: float = field(default=1e-3, metadata=NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale > self.max_scale:
            raise ValueError(
                f"scale must be at most max_scale ({self.max_scale}), got {self.scale}"
            )

    def reports(
        self, tuning: "type[SelfTuning]", candidate: Candidate, task: Task, run: Run
    ) -> Iterator[Report]:
        """Train a candidate: plainly, like `supervised`, if nothing is open.

        Args:
            tuning: The training of a candidate with open decisions.
            candidate: The candidate.
            task: The task.
            run: The trial's run.
        """
        opened = candidate.open_decisions.keys() - candidate.found.keys()
        if opened:
            _refuse_untunable(self.trainer, candidate)
        closed = {k: v for k, v in candidate.hyperparameters.items() if not isinstance(v, Open)}
        settings = self.configured(closed).for_run(run)
        kind = tuning if opened else Loop
        yield from by_epochs(lambda: kind(settings, candidate, task, run), run)


def tunable(decision: Open) -> bool:
    """Return whether a network can respond to a decision while its value varies in training.

    The decision is a number, each of its uses changes how a batch is computed but not which weights
    compute it, and all examples, or at least all batches, can have values of their own.
    """
    numeric = isinstance(decision.distribution, FloatDistribution | IntDistribution)
    return numeric and bool(decision.uses) and all(map(_varies, decision.uses))


def _varies(use: Use) -> bool:
    if use.kind is UseKind.HYPERPARAMETER:
        return use.attribute in _TUNED
    in_layer = use.kind in (UseKind.ATTRIBUTE, UseKind.LAYER)
    return in_layer and use.scope is not Scope.GLOBAL and not use.structural


def _refuse_untunable(trainer: str, candidate: Candidate) -> None:
    for name, value in candidate.hyperparameters.items():
        if isinstance(value, Open) and name not in _TUNED:
            decay = ": a decoupled decay is no term of the loss; offer l2 instead"
            raise TrialError(
                f"trainer {trainer} cannot tune the hyperparameter {name!r}"
                f"{decay if name == 'weight_decay' else ''}; it tunes: {', '.join(_TUNED)}"
            )


class SelfTuning(Loop):
    """A training in which the open decisions are perturbed, and tuned every few steps.

    Attributes:
        centred: Whether layers respond to the difference from the current hyperparameters.
        signal: What the layers respond to.
        hyper: The hyperparameters.
    """

    centred: ClassVar[bool] = False
    settings: SelfTuningSettings

    def __init__(
        self, settings: SelfTuningSettings, candidate: Candidate, task: Task, run: Run
    ) -> None:
        self.signal = Signal()
        self._rows, self._given = divided(
            settings.outer, settings.share, task, run, settings.trainer
        )
        super().__init__(settings, candidate, task, run)
        self.hyper = Perturbed(
            candidate, self.module, self.device, settings.scale, settings.max_scale
        )
        self._optimizer = self.outer_optimizer(self.hyper.parameters)
        self._generator = torch.Generator()
        self._history: list[dict[str, float | int]] = []
        self._noticed = Counter(outer_steps=0, skipped_steps=0)
        self._norm = 0.0

    # What the two trainers do differently.
    def outer_optimizer(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer of the hyperparameters and scales."""
        return torch.optim.Adam(parameters, self.settings.outer_lr)

    def fed(self, hyper: Tensor) -> Tensor:
        """Return what the layers respond to at some hyperparameters, with a gradient."""
        return hyper

    def collapsing(self, phi: Tensor) -> Tensor:
        """Return what the layers respond to without a perturbation."""
        return phi

    # What differs from a plain training.
    def converted(self, module: nn.Module) -> nn.Module:
        convert(module, len(self.candidate.open_decisions), self.signal, self.centred)
        return module

    def parameters(self) -> Iterator[Tensor]:
        helpers = {id(parameter) for parameter in self.helpers()}
        return (p for p in super().parameters() if id(p) not in helpers)

    def helpers(self) -> list[nn.Parameter]:
        return responding_parameters(self.module)

    def training_examples(self) -> Examples:
        examples = super().training_examples()
        if len(self._rows) == len(examples):
            return examples
        return Examples(examples.inputs[self._rows], examples.targets[self._rows])

    def epoch(self) -> None:
        # As in a plain epoch, seeds instead of states make a resumed epoch exact.
        self._generator.manual_seed(self.run.seed_for("perturbation", self.epochs + 1))
        self._outer_rows = self._outer_batches(self.epochs + 1)
        self._history.append(self.hyper.closed(self.hyper.phi))
        super().epoch()

    def _outer_batches(self, epoch: int) -> Iterator[Tensor]:
        for turn in itertools.count():
            seed = self.run.seed_for("outer", epoch, turn)
            yield from self._given.batches(self.settings.batch_size, seed)

    def after_step(self) -> None:
        untuned = min(self.settings.untuned_epochs, self.settings.epochs // 2)
        if self.epochs > untuned and self.steps % self.settings.inner_steps == 0:
            self.module.eval()
            for _ in range(self.settings.outer_steps):
                self._outer_step(next(self._outer_rows))
            self.module.train()

    def _outer_step(self, rows: Tensor) -> None:
        """Move the hyperparameters and scales, unless a gradient is not finite."""
        scaler = self.mixed.scaler
        gradients = [torch.zeros_like(each) for each in self.hyper.parameters]
        for part in rows.tensor_split(min(self.run.micro_batches, len(rows))):
            loss = self._outer_loss(part) * (len(part) / len(rows))
            of_part = torch.autograd.grad(
                scaler.scale(loss), self.hyper.parameters, materialize_grads=True
            )
            scale = scaler.get_scale()
            gradients = [g + added / scale for g, added in zip(gradients, of_part, strict=True)]
        self.counts["inner_gradients"] += 1
        self._move(gradients)

    def _outer_loss(self, rows: Tensor) -> Tensor:
        """Return the outer loss of some examples, with perturbed hyperparameters."""
        hyper = self.hyper.draw(len(rows), self._generator, outer=True)
        values = Values(decisions=self.hyper.values(hyper, outer=True).decisions)
        inputs, targets = self._given.inputs[rows], self._given.targets[rows]
        with self.mixed.autocast(), self.signal.feeding(self.fed(hyper)):
            loss = self.task.loss(self.forward(inputs, values), targets)
        return loss - self.settings.entropy * self.hyper.entropy()

    def _move(self, gradients: list[Tensor]) -> None:
        norm = float(gradients[0].norm())
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            if not self._noticed["skipped_steps"]:
                _log.warning(
                    "trial %d: skipped a step of the hyperparameters in epoch %d, because the "
                    "gradient was not finite",
                    self.run.number,
                    self.epochs,
                )
            self._noticed["skipped_steps"] += 1
            return
        for parameter, gradient in zip(self.hyper.parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self.hyper.bound()
        self._noticed["outer_steps"] += 1
        self._norm = norm

    def outputs(self, examples: Examples) -> Tensor:
        return self._outputs_at(examples, self.hyper.phi.detach())

    def _outputs_at(self, examples: Examples, phi: Tensor) -> Tensor:
        """Return the outputs of the collapsed network."""
        values = self.hyper.values(phi).decisions
        with assigned(self.module, values), self.signal.feeding(self.collapsing(phi)):
            return super().outputs(examples)

    def measured(self) -> dict[str, float]:
        outputs = self.outputs(self.validation)
        measured = dict(self.task.evaluate(outputs, self.validation.targets))
        if self.settings.outer is Outer.SHARE:
            outputs = self.outputs(self._given)
        return {
            **measured,
            "outer_loss": float(self.task.loss(outputs, self._given.targets).detach()),
            "hypergradient_norm": self._norm,
            **self._noticed,
        }

    def keeps_best(self) -> bool:
        # Before the first step, decisions have the values of their middle, which nobody chose.
        return self._noticed["outer_steps"] > 0 or self.finished

    def improved(self, best: Best) -> bool:
        # By what the decisions are tuned for, rather than by the task's first metric.
        before = best.metrics["outer_loss"]
        return math.isnan(before) or self.metrics["outer_loss"] < before

    def noted(self) -> dict[str, Any]:
        return {"phi": self.hyper.phi.detach().clone()}

    def report(self) -> Report:
        phi = self.hyper.phi.detach() if self.best is None else self.best.noted["phi"]
        closed = self.hyper.closed(phi)
        until = self.epochs if self.best is None else self.best.epoch
        history = [*self._history[:until], closed]
        return replace(
            super().report(),
            outputs=self._outputs_at(self.validation, phi) if self.finished else None,
            closed=closed,
            weights=lambda: self._collapsed(phi).state_dict(),
            found={
                name: schedule_of([values[name] for values in history], self.settings.epochs)
                for name in self.hyper.names
            },
        )

    def _collapsed(self, phi: Tensor) -> nn.Module:
        """Return the module of the best epoch so far as an ordinary one."""
        module = self.module
        if self.best is not None:
            module = copy.deepcopy(module)
            module.load_state_dict(self.best.weights)
        return collapse(module, self.collapsing(phi))

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "hyper": self.hyper.state(),
            "outer_optimizer": self._optimizer.state_dict(),
            "history": [dict(values) for values in self._history],
            "noticed": dict(self._noticed),
            "norm": self._norm,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        with loading(self.run):
            self.hyper.load(state["hyper"])
            self._optimizer.load_state_dict(state["outer_optimizer"])
            self._history = [dict(values) for values in state["history"]]
            self._noticed, self._norm = Counter(state["noticed"]), state["norm"]
