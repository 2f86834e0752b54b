"""Record what a trainer does to a module: its outputs, its gradients, its steps."""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from automl.plugin.protocols import Split, Task
from automl.plugin.report import Direction
from automl.space.candidate import Signature

if TYPE_CHECKING:
    from torch.optim import Optimizer

# Gradients that cancel in theory leave rounding noise, which Adam would turn into a full step.
_NOISE = 2.0**-36
_NO_GRADIENT = 2.0**-40
_MAX_STEPS = 4
_MAX_OUTPUTS = 64

Vector = NDArray[np.float64]


class EnoughError(BaseException):
    """Stops a trainer that would continue for long before its next report."""


@dataclass(frozen=True)
class Outputs:
    """What a module returned for a batch.

    Attributes:
        values: The output, as float64 on the CPU.
        training: Whether the module was in training mode.
    """

    values: Tensor
    training: bool


@dataclass(frozen=True)
class Gradients:
    """Sums of powers over all elements of all gradients at one step."""

    squares: float
    fourth_powers: float


@dataclass
class Recording:
    """The record of one training.

    Attributes:
        steps: The number of steps after which the training can stop.
        modules: The modules that the trainer built.
        outputs: The outputs that the trainer passed to the task.
        gradients: The gradients of each step of an optimizer.
        reports: The number of reports.
        finite: Whether all outputs and gradients were finite.
    """

    steps: int
    modules: list[nn.Module] = field(default_factory=list)
    outputs: list[Outputs] = field(default_factory=list)
    gradients: list[Gradients] = field(default_factory=list)
    reports: int = 0
    finite: bool = True
    _live: dict[int, int] = field(default_factory=dict)
    _idle: dict[int, bool] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """The number of steps made; without an optimizer, each report is a step."""
        return len(self.gradients) or self.reports

    @property
    def live_parameters(self) -> int | None:
        """The number of parameter elements that got a gradient; None without an optimizer."""
        if not self.gradients:
            return None
        parameters = {id(p) for module in self.modules for p in module.parameters()}
        return sum(size for key, size in self._live.items() if key in parameters)

    def has_idle_parameters(self, unused: bool) -> bool:
        """Return whether some parameter had no effect in any step.

        Args:
            unused: Count also those that were not part of the function in any step.
        """
        trained = (p for module in self.modules for p in module.parameters() if p.requires_grad)
        return any(self._idle.get(id(parameter), unused) for parameter in trained)

    def record(self, outputs: Any) -> None:
        """Record a copy of outputs: tensors and numbers, also nested.

        Raises:
            EnoughError: There are too many outputs.
        """
        training = bool(self.modules) and self.modules[-1].training
        for tensor in _tensors(outputs):
            values = tensor.detach().to("cpu", torch.float64, copy=True)
            self.finite &= not values.numel() or math.isfinite(values.abs().max())
            self.outputs.append(Outputs(values, training))
        if len(self.outputs) > _MAX_OUTPUTS * self.steps:
            raise EnoughError

    def record_step(self, optimizer: "Optimizer") -> None:
        """Remove the noise from the gradients of an optimizer's next step and record them.

        Raises:
            EnoughError: There are too many steps.
        """
        if len(self.gradients) >= _MAX_STEPS * self.steps:
            raise EnoughError
        groups = (group["params"] for group in optimizer.param_groups)
        found = [p for group in groups for p in group if p.grad is not None]
        grads = [_dense(p) for p in found]
        # Together and with numpy, because there are many small gradients.
        flat = torch.cat([*(g.reshape(-1) for g in grads), torch.empty(0)])
        squares = self._without_noise(found, grads, flat.to(torch.float64).numpy()) ** 2
        self.gradients.append(Gradients(float(squares.sum()), float((squares * squares).sum())))

    def _without_noise(
        self, found: Sequence[Tensor], grads: Sequence[Tensor], flat: Vector
    ) -> Vector:
        """Zero gradients that are only noise, in place and in `flat`; note live parameters."""
        sizes = np.abs(flat)
        largest = float(sizes.max(initial=0.0))
        self.finite &= math.isfinite(largest)
        noise = sizes < (_NOISE * largest if largest >= _NO_GRADIENT else math.inf)
        # Most gradients this small are zero already.
        noisy = bool(noise.any() and sizes[noise].any())
        stop = 0
        for parameter, grad in zip(found, grads, strict=True):
            start, stop = stop, stop + grad.numel()
            part = noise[start:stop]
            # Exactly zero: a bias before a normalization has an effect that cancels, up to noise.
            if self._idle.get(id(parameter), True):
                self._idle[id(parameter)] = not sizes[start:stop].any()
            if id(parameter) not in self._live and not part.all():
                self._live[id(parameter)] = parameter.numel()
            if noisy and part.any():
                grad.masked_fill_(torch.from_numpy(part).reshape(grad.shape), 0)
        if noisy:
            flat[noise] = 0
        return flat


@contextmanager
def recorded(recording: Recording) -> Iterator[None]:
    """Record every step of every optimizer in this thread."""
    thread = threading.get_ident()

    def before_step(optimizer: "Optimizer", args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:
            with torch.no_grad():
                recording.record_step(optimizer)

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        yield
    finally:
        handle.remove()


class ProbeTask:
    """A task whose splits are all its probe, in float64, and that records the outputs it gets.

    Args:
        task: The task.
        inputs: The inputs of its probe.
        targets: The targets of its probe.
        recording: Records the outputs.
    """

    def __init__(self, task: Task, inputs: Any, targets: Any, recording: Recording) -> None:
        self._task, self._recording = task, recording
        self._inputs, self._targets = inputs, targets

    @property
    def signature(self) -> Signature:
        return self._task.signature

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return self._task.metrics

    def digest(self) -> str:
        return self._task.digest()

    def split(self, split: Split) -> tuple[Any, Any]:
        return self.probe()

    def probe(self) -> tuple[Any, Any]:
        # Copies, because a module may work in place.
        return copied(self._inputs), copied(self._targets)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        self._recording.record(outputs)
        return self._task.loss(outputs, targets)

    def evaluate(self, outputs: Any, targets: Any) -> Mapping[str, float]:
        self._recording.record(outputs)
        return self._task.evaluate(outputs, targets)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._task, name)


def copied(value: Any) -> Any:
    """Copy a tensor or nested tensors to the CPU, with floating point as float64."""
    if isinstance(value, Tensor):
        dtype = torch.float64 if value.is_floating_point() else value.dtype
        return value.detach().to("cpu", dtype, copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_complex():
            value = torch.view_as_real(value)
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from _tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif value is not None:
        yield torch.as_tensor(value, dtype=torch.float64)


def _dense(parameter: Tensor) -> Tensor:
    """The elements of a gradient, as a tensor that can be changed in place."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        parameter.grad = gradient = gradient.coalesce()
        gradient = gradient._values()
    gradient = gradient.detach()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
