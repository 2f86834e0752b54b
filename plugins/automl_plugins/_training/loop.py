"""The training of one candidate: steps, epochs, evaluation, early stopping and checkpoints."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from automl import Candidate, Direction, NotFiniteError, Report, Run, Split, Task
from automl_plugins._training.arithmetic import Mixed, clear_gradients, optimizer_of, placed
from automl_plugins._training.epochs import loading
from automl_plugins._training.examples import Examples, smoothed
from automl_plugins._training.settings import Settings, learning_rate

_CHECKPOINT_FORMAT = 2
_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Best:
    """The best epoch so far.

    Attributes:
        epoch: Its number.
        metrics: Its metrics.
        weights: The module's parameters and buffers after it.
        noted: What `Loop.noted` returned after it.
    """

    epoch: int
    metrics: Mapping[str, float]
    weights: Mapping[str, Tensor]
    noted: Mapping[str, Any] = field(default_factory=dict)


class Loop:
    """Minibatch gradient descent on one candidate, epoch by epoch.

    A trainer that does more than this subclasses it, and overrides the methods that differ:
    `converted`, `parameters` and `training_examples` before the training, `loss`, `penalty` and
    `after_step` in each step, `keeps_best` and `noted` after each epoch, and `report`, `state` and
    `load`. Everything else, such as the schedule, the precision or the order of the examples, is
    the same for all trainers.

    Attributes:
        settings: How to train.
        candidate: The candidate.
        task: The task.
        run: The trial's run.
        device: The device of the module and of all examples.
        module: The module in training.
        optimizer: The optimizer of the module's parameters.
        mixed: The precision of a forward pass.
        examples: The training examples.
        validation: The validation examples.
        epochs: The number of epochs so far.
        counts: What was computed since the trial's first attempt began, by the names in
            `Report.counts`.
        metrics: The metrics of the last epoch.
        stopped: Whether patience has ended the training.
        best: The best epoch so far, if it is kept.
    """

    def __init__(self, settings: Settings, candidate: Candidate, task: Task, run: Run) -> None:
        self.settings, self.candidate, self.task, self.run = settings, candidate, task, run
        self.device = torch.device(run.device)
        torch.manual_seed(run.seed_for("init"))
        built = candidate.build(task.probe()[0], task.signature)
        self.module = placed(self.converted(built), self.device)
        self.optimizer = optimizer_of(settings, self.parameters())
        self.mixed = Mixed(settings.precision, self.device)
        self.examples = self.training_examples()
        self._smoothed = smoothed(self.examples.targets, settings.label_smoothing, task)
        self.validation = Examples.of(task, Split.VALIDATION, self.device)
        self.epochs = 0
        self.counts = Counter(inner_gradients=0)
        self.metrics: Mapping[str, float] = {}
        self.stopped = False
        self.best: Best | None = None

    # What a subclass may override.
    def converted(self, module: nn.Module) -> nn.Module:
        """Return the module to train, made from the candidate's; called once, after seeding."""
        return module

    def parameters(self) -> Iterable[Tensor]:
        """Return the parameters that the optimizer updates."""
        return self.module.parameters()

    def training_examples(self) -> Examples:
        """Return the examples to train on."""
        return Examples.of(self.task, Split.TRAIN, self.device)

    def loss(self, step: int, rows: Tensor) -> Tensor:
        """Return the mean loss of some training examples.

        Args:
            step: Counts from 0 over all epochs.
            rows: The numbers of the examples: a batch, or one of its micro-batches.
        """
        inputs = self.examples.inputs.index_select(0, rows)
        targets = self._smoothed.index_select(0, rows)
        return self.task.loss(self.module(inputs), targets)

    def penalty(self, step: int) -> Tensor | None:
        """Return a term to add to the loss of each batch; it is no part of `train_loss`."""
        return None

    def after_step(self, step: int) -> None:
        """Do more after a step of the optimizer; the module is in training mode again after it."""

    def keeps_best(self) -> bool:
        """Return whether the training ends with the weights and metrics of its best epoch."""
        return self.settings.patience is not None

    def noted(self) -> dict[str, Any]:
        """Return what to keep of the best epoch besides its weights, as a checkpoint stores it."""
        return {}

    def report(self) -> Report:
        """Return the report of the last epoch."""
        weights = self.module.state_dict
        return Report(self.epochs, self.metrics, checkpoint=self.state, weights=weights)

    # The training.
    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.stopped or self.epochs >= self.settings.epochs

    def epoch(self) -> None:
        """Train for one more epoch, then evaluate."""
        self.epochs += 1
        # With a seed for each epoch, a resumed epoch is exact without storing a generator's state.
        seed = self.run.seed_for("epoch", self.epochs)
        torch.manual_seed(seed)
        loss = self._pass(self.examples.batches(self.settings.batch_size, seed))
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"the training loss became {loss} in epoch {self.epochs}: training diverged"
            )
        measured = self.task.evaluate(self.outputs(self.validation), self.validation.targets)
        self.metrics = {**measured, "train_loss": loss}
        if self.keeps_best():
            self._watch()

    def _pass(self, batches: tuple[Tensor, ...]) -> float:
        """Take one step per batch, and return the mean loss per example."""
        self.module.train()
        total = torch.zeros((), device=self.device)
        first = (self.epochs - 1) * len(batches)
        for step, rows in enumerate(batches, first):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(step, len(batches))
            # Summed on the device, because reading each loss would stall an accelerator.
            total += self._step(step, rows) * len(rows)
            self.after_step(step)
            self.run.tick()
        return float(total) / sum(map(len, batches))

    def _rate(self, step: int, steps_per_epoch: int) -> float:
        # A probe takes too few steps for a schedule or a warm-up.
        if self.run.probe:
            return self.settings.lr
        return learning_rate(self.settings, step, steps_per_epoch)

    def _step(self, step: int, rows: Tensor) -> Tensor:
        """Take a step of the optimizer on a batch, and return its mean loss."""
        clear_gradients(self.optimizer)
        parts = rows.tensor_split(min(self.run.micro_batches, len(rows)))
        losses = [self._gradients(step, part, len(part) / len(rows)) for part in parts]
        scaler = self.mixed.scaler
        if self.settings.clip_norm is not None:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self.counts["inner_gradients"] += 1
        return torch.stack(losses).sum()

    def _gradients(self, step: int, rows: Tensor, share: float) -> Tensor:
        """Add a part's share of a batch's gradients, and return its share of the mean loss."""
        with self.mixed.autocast():
            loss = self.loss(step, rows) * share
        penalty = self.penalty(step)
        objective = loss if penalty is None else loss + penalty * share
        self.mixed.scaler.scale(objective).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def outputs(self, examples: Examples) -> Tensor:
        """Return the outputs for all examples in evaluation mode, in at least single precision."""
        self.module.eval()
        parts = []
        size = max(self.settings.batch_size, _EVALUATION_BATCH) // self.run.micro_batches or 1
        for inputs in torch.split(examples.inputs, size):
            with self.mixed.autocast():
                parts.append(self.module(inputs))
            self.run.tick()
        outputs = torch.cat(parts)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _watch(self) -> None:
        """Keep the best epoch, stop if patience is over, and end with the best epoch."""
        if self.best is None or self._improved(self.best):
            weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
            self.best = Best(self.epochs, self.metrics, weights, self.noted())
        patience = self.settings.patience
        self.stopped = patience is not None and self.epochs - self.best.epoch >= patience
        if self.finished:
            self.module.load_state_dict(self.best.weights)
            self.metrics = {**self.best.metrics, "best_epoch": self.best.epoch}

    def _improved(self, best: Best) -> bool:
        metric, direction = next(iter(self.task.metrics.items()))
        sign = 1 if direction is Direction.MAXIMIZE else -1
        return sign * self.metrics[metric] > sign * best.metrics[metric]

    def state(self) -> dict[str, Any]:
        """Return everything that `load` needs to continue with bit-identical results."""
        return {
            "format": _CHECKPOINT_FORMAT,
            "settings": self.settings.plain(),
            "epochs": self.epochs,
            "counts": dict(self.counts),
            "stopped": self.stopped,
            "metrics": dict(self.metrics),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.mixed.scaler.state_dict(),
            "best": None if self.best is None else dict(vars(self.best)),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            TrialError: The checkpoint belongs to another candidate, other settings or another
                trainer.
        """
        with loading(self.run):
            if state["format"] != _CHECKPOINT_FORMAT or state["settings"] != self.settings.plain():
                raise ValueError("it was written under other settings")
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.mixed.scaler.load_state_dict(state["scaler"])
            self.epochs, self.stopped = state["epochs"], state["stopped"]
            self.counts, self.metrics = Counter(state["counts"]), state["metrics"]
            self.best = None if state["best"] is None else Best(**state["best"])
