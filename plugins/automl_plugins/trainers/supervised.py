"""Supervised: minibatch gradient descent with warm-up and a cosine schedule.

Sources: I. Loshchilov, F. Hutter: SGDR, arXiv 1608.03983 (cosine schedule), and Decoupled Weight
Decay Regularization, arXiv 1711.05101 (AdamW); C. Szegedy et al.: Rethinking the Inception
Architecture, arXiv 1512.00567 (label smoothing).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from automl import (
    Candidate,
    Direction,
    NotFiniteError,
    Report,
    Run,
    Split,
    Task,
    Trainer,
    TrialError,
    hookimpl,
)
from automl_plugins.trainers._epochs import by_epochs, loading

_CHECKPOINT_FORMAT = 1
_EVALUATION_BATCH = 512
_PROBE_EPOCHS = 3


class Optimizer(Enum):
    """The optimizer of the weights."""

    SGD = "sgd"
    ADAMW = "adamw"


class Precision(Enum):
    """The precision of a forward pass. AUTO is half precision on CUDA, and single elsewhere."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True)
class _Range:
    """The allowed values of a field; calling it converts a value or raises."""

    expected: str
    kind: type[int | float | Enum]
    fits: Callable[[Any], bool] = lambda value: True

    def __call__(self, value: Any) -> Any:
        converted = self.kind(value)
        whole = isinstance(converted, Enum) or converted == value
        if isinstance(value, bool) or not whole or not self.fits(converted):
            raise ValueError
        return converted


def _range(expected: str, kind: type[int | float], fits: Callable[[Any], bool]) -> dict[str, Any]:
    return {"range": _Range(expected, kind, fits)}


def _member(kind: type[Enum]) -> dict[str, Any]:
    return {"range": _Range(" or ".join(str(member.value) for member in kind), kind)}


_COUNT = _range("a whole number, at least 1", int, lambda n: n >= 1)
_POSITIVE = _range("a positive number", float, lambda x: 0 < x < math.inf)
_NOT_NEGATIVE = _range("a number, at least 0", float, lambda x: 0 <= x < math.inf)
_SHARE = _range("a number in [0, 1)", float, lambda x: 0 <= x < 1)


@dataclass(frozen=True)
class Supervised(Trainer):
    """Minimizes the task's loss by minibatch gradient descent, with one report per epoch.

    A candidate's hyperparameters override the options of the same names. The learning rate rises
    linearly to `lr` over `warmup_epochs`, then falls to zero along a cosine, step by step.

    Attributes:
        epochs: The number of passes over the training data.
        optimizer: The optimizer.
        lr: The largest learning rate.
        momentum: The momentum of SGD; other optimizers do not use it.
        weight_decay: The weight decay.
        batch_size: The number of examples per step.
        warmup_epochs: The number of epochs over which the learning rate rises.
        label_smoothing: The share of each target that is spread over all classes.
        clip_norm: The largest norm of a gradient; larger ones are scaled down.
        patience: Stop after this many epochs without improvement in the task's first metric, and
            use the weights of the best epoch.
        precision: The precision of a forward pass; auto is half precision on CUDA, and single
            elsewhere.

    Raises:
        ValueError: A value is out of its range.
    """

    epochs: int = field(default=10, metadata=_COUNT)
    optimizer: Optimizer = field(default=Optimizer.ADAMW, metadata=_member(Optimizer))
    lr: float = field(default=1e-3, metadata=_POSITIVE)
    momentum: float = field(default=0.9, metadata=_SHARE)
    weight_decay: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    batch_size: int = field(default=128, metadata=_COUNT)
    warmup_epochs: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    label_smoothing: float = field(default=0.0, metadata=_SHARE)
    clip_norm: float | None = field(default=None, metadata=_POSITIVE)
    patience: int | None = field(default=None, metadata=_COUNT)
    precision: Precision = field(default=Precision.AUTO, metadata=_member(Precision))

    def __post_init__(self) -> None:
        for each in fields(self):
            value, wanted = getattr(self, each.name), each.metadata["range"]
            if value is None and each.default is None:
                continue
            try:
                object.__setattr__(self, each.name, wanted(value))
            except (ValueError, TypeError, OverflowError):
                text = f"{each.name} must be {wanted.expected}, got {value!r}"
                raise ValueError(text) from None
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs must be less than epochs ({self.epochs}), got {self.warmup_epochs}"
            )

    def train(self, candidate: Candidate, task: Task, run: Run) -> Iterator[Report]:
        """Train, and yield a report with the validation metrics and `train_loss` after each epoch.

        Raises:
            TrialError: The trainer does not know a hyperparameter or cannot use its value, or the
                targets cannot be smoothed.
            NotFiniteError: The training loss is NaN or infinite.
        """
        settings = self.configured(candidate.hyperparameters)
        settings = _probing(settings) if run.probe else settings
        settings = replace(settings, patience=None) if run.refit else settings
        yield from by_epochs(lambda: _Training(settings, candidate, task, run), run)

    def unread(self, candidate: Candidate) -> frozenset[str]:
        chosen = candidate.hyperparameters.get("optimizer", self.optimizer)
        adamw = chosen in (Optimizer.ADAMW, Optimizer.ADAMW.value)
        return frozenset({"momentum"} if adamw else ())

    def configured(self, hyperparameters: Mapping[str, Any]) -> "Supervised":
        """Return this trainer with a candidate's hyperparameters.

        Raises:
            TrialError: A hyperparameter is unknown, or its value is out of range.
        """
        names = [each.name for each in fields(self)]
        unknown = [name for name in hyperparameters if name not in names]
        if unknown:
            raise TrialError(
                f"trainer supervised: unknown hyperparameter {', '.join(map(repr, unknown))}; "
                f"known: {', '.join(names)}"
            )
        try:
            return replace(self, **hyperparameters)
        except ValueError as error:
            raise TrialError(f"trainer supervised: {error}") from error


def learning_rate(settings: Supervised, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Args:
        settings: The trainer.
        step: Counts from 0 over all epochs.
        steps_per_epoch: The number of steps in each epoch.
    """
    total = settings.epochs * steps_per_epoch
    warm_up = math.floor(settings.warmup_epochs * steps_per_epoch)
    if step < warm_up:
        return settings.lr * (step + 1) / warm_up
    return settings.lr * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up))) / 2


def _probing(settings: Supervised) -> Supervised:
    """Return the settings of a probe: a few epochs in full precision."""
    return replace(
        settings,
        epochs=_PROBE_EPOCHS,
        warmup_epochs=0.0,
        patience=None,
        precision=Precision.FP32,
    )


@dataclass(frozen=True)
class _Best:
    """The best epoch so far, with its metrics and weights."""

    epoch: int
    metrics: Mapping[str, float]
    weights: Mapping[str, Tensor]


class _Training:
    """The training of one candidate."""

    def __init__(self, settings: Supervised, candidate: Candidate, task: Task, run: Run) -> None:
        self.settings, self.task, self.run = settings, task, run
        device = torch.device(run.device)
        torch.manual_seed(run.seed_for("init"))
        self.module = _placed(candidate.build(task.probe()[0], task.signature), device)
        self.optimizer = _optimizer(settings, self.module)
        self.half = _half(settings.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        self.inputs, targets = _moved(task.split(Split.TRAIN), device)
        self.targets = _smoothed(targets, settings.label_smoothing, task)
        self.validation = _moved(task.split(Split.VALIDATION), device)
        self.epochs = 0
        self.stopped = False
        self.metrics: Mapping[str, float] = {}
        self.best: _Best | None = None

    @property
    def finished(self) -> bool:
        return self.stopped or self.epochs >= self.settings.epochs

    def report(self) -> Report:
        weights = self.module.state_dict
        return Report(self.epochs, self.metrics, checkpoint=self.state, weights=weights)

    def epoch(self) -> None:
        """Train for one more epoch, then evaluate."""
        self.epochs += 1
        # With a seed for each epoch, a resumed epoch is exact without storing a generator's state.
        seed = self.run.seed_for("epoch", self.epochs)
        torch.manual_seed(seed)
        loss = self._pass(self._batches(seed))
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"the training loss became {loss} in epoch {self.epochs}: training diverged"
            )
        measured = self.task.evaluate(self._outputs(), self.validation[1])
        self.metrics = {**measured, "train_loss": loss}
        if self.settings.patience is not None:
            self._watch(self.settings.patience)

    def _batches(self, seed: int) -> tuple[Tensor, ...]:
        """Return the rows of each batch of an epoch, in the same order on every device."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self.inputs), generator=generator).to(self.inputs.device)
        batches = torch.split(rows, self.settings.batch_size)
        # Batch normalisation cannot train on a single example.
        lone = len(batches) > 1 and len(batches[-1]) == 1 < self.settings.batch_size
        return batches[:-1] if lone else batches

    def _pass(self, batches: tuple[Tensor, ...]) -> float:
        """Take one step per batch, and return the mean loss per example."""
        self.module.train()
        total = torch.zeros((), device=self.inputs.device)
        first = (self.epochs - 1) * len(batches)
        for step, rows in enumerate(batches, first):
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate(step, len(batches))
            # Summed on the device, because reading each loss would stall an accelerator.
            total += self._step(rows) * len(rows)
            self.run.tick()
        return float(total) / sum(map(len, batches))

    def _rate(self, step: int, steps_per_epoch: int) -> float:
        # A probe takes too few steps for a schedule or a warm-up.
        if self.run.probe:
            return self.settings.lr
        return learning_rate(self.settings, step, steps_per_epoch)

    def _step(self, rows: Tensor) -> Tensor:
        self._clear_gradients()
        parts = rows.tensor_split(min(self.run.micro_batches, len(rows)))
        loss = torch.stack([self._gradients(part, len(part) / len(rows)) for part in parts]).sum()
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _gradients(self, rows: Tensor, share: float) -> Tensor:
        """Add a part's share of a batch's gradients, and return its share of the mean loss."""
        inputs, targets = self.inputs.index_select(0, rows), self.targets.index_select(0, rows)
        with self._autocast():
            loss = self.task.loss(self.module(inputs), targets) * share
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _clear_gradients(self) -> None:
        # The optimizer's own `zero_grad` is much slower, because it records a profiler event.
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def _outputs(self) -> Tensor:
        """Return the outputs for all validation examples, in at least single precision."""
        self.module.eval()
        parts = []
        size = max(self.settings.batch_size, _EVALUATION_BATCH) // self.run.micro_batches or 1
        for inputs in torch.split(self.validation[0], size):
            with self._autocast():
                parts.append(self.module(inputs))
            self.run.tick()
        outputs = torch.cat(parts)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.half is None:
            return nullcontext()
        return torch.autocast(self.inputs.device.type, self.half)

    def _watch(self, patience: int) -> None:
        """Keep the best epoch, stop after `patience` epochs without improvement, and restore it."""
        if self.best is None or self._improved(self.best):
            weights = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
            self.best = _Best(self.epochs, self.metrics, weights)
        self.stopped = self.epochs - self.best.epoch >= patience
        if self.finished:
            self.module.load_state_dict(self.best.weights)
            self.metrics = {**self.best.metrics, "best_epoch": self.best.epoch}

    def _improved(self, best: _Best) -> bool:
        metric, direction = next(iter(self.task.metrics.items()))
        sign = 1 if direction is Direction.MAXIMIZE else -1
        return sign * self.metrics[metric] > sign * best.metrics[metric]

    def state(self) -> dict[str, Any]:
        """Return everything that `load` needs to continue with bit-identical results."""
        return {
            "format": _CHECKPOINT_FORMAT,
            "settings": _plain(self.settings),
            "epochs": self.epochs,
            "stopped": self.stopped,
            "metrics": dict(self.metrics),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": None if self.best is None else dict(vars(self.best)),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            TrialError: The checkpoint belongs to another candidate, other settings or another
                trainer.
        """
        with loading(self.run):
            if state["format"] != _CHECKPOINT_FORMAT or state["settings"] != _plain(self.settings):
                raise ValueError("it was written under other settings")
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.epochs, self.stopped = state["epochs"], state["stopped"]
            self.metrics = state["metrics"]
            self.best = None if state["best"] is None else _Best(**state["best"])


def _placed(module: nn.Module, device: torch.device) -> nn.Module:
    # Checking is faster than moving a module that is already there.
    tensors = chain(module.parameters(), module.buffers())
    there = device.type == "cpu" and all(tensor.device == device for tensor in tensors)
    return module if there else module.to(device)


def _optimizer(settings: Supervised, module: nn.Module) -> torch.optim.Optimizer:
    # Fused steps save a third of a small model's time on a CPU; not every device has them.
    parameters = list(module.parameters())
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    common = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": fused}
    if settings.optimizer is Optimizer.SGD:
        return torch.optim.SGD(parameters, momentum=settings.momentum, **common)  # type: ignore[arg-type]
    return torch.optim.AdamW(parameters, **common)  # type: ignore[arg-type]


def _half(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Return the type to cast to in a forward pass; None for single precision."""
    if precision is Precision.AUTO:
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(precision)


def _moved(split: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    inputs, targets = split
    return inputs.to(device), targets.to(device)


def _smoothed(targets: Tensor, smoothing: float, task: Task) -> Tensor:
    """Convert class numbers [n] to smoothed probabilities [n, classes], if smoothing is set."""
    if not smoothing:
        return targets
    if targets.is_floating_point() or targets.dim() != 1:
        raise TrialError(
            f"label_smoothing needs targets that are class numbers [n]; the task's targets have "
            f"type {targets.dtype} and shape {list(targets.shape)}: set it to 0"
        )
    classes = task.signature.output_shape[-1]
    exact = nn.functional.one_hot(targets, classes).to(torch.get_default_dtype())
    return exact * (1 - smoothing) + smoothing / classes


def _plain(settings: Supervised) -> dict[str, Any]:
    """Return settings as a checkpoint can store them."""
    return {k: v.value if isinstance(v, Enum) else v for k, v in asdict(settings).items()}


@hookimpl
def register_trainers() -> Mapping[str, Callable[..., Trainer]]:
    return {"supervised": Supervised}
