"""Tabular: stands for the data that a benchmark table's networks were trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from automl import Direction, Signature, Split, Task, UsageError, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

_EXAMPLES = 10


@dataclass(frozen=True)
class Tabular:
    """A task without data, for trainer `tabular`: the shapes of a network and what to optimise.

    input_shape: of one example. classes: how many the network tells apart. maximize, minimize:
    the table's metrics that may be objectives; the first is the default. Every split is the
    same ten examples of noise in [0, 1), enough to build networks and to tell them apart.

    Raises:
        UsageError: no metrics, one named twice, or shapes that cannot be.
    """

    input_shape: tuple[int, ...] = (3, 32, 32)
    classes: int = 10
    maximize: tuple[str, ...] = ("accuracy",)
    minimize: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes < 2 or min(self.input_shape, default=0) < 1:
            raise UsageError(
                "task tabular: expected positive input_shape and two classes or more, got "
                f"{self.input_shape} and {self.classes}"
            )
        names = [*self.maximize, *self.minimize]
        if not names or len(set(names)) < len(names):
            raise UsageError(
                "task tabular: maximize and minimize must name one metric at least, each once, "
                f"got {', '.join(names) or 'none'}"
            )

    @property
    def signature(self) -> Signature:
        return Signature(tuple(self.input_shape), (self.classes,))

    @property
    def metrics(self) -> Mapping[str, Direction]:
        up = dict.fromkeys(self.maximize, Direction.MAXIMIZE)
        return up | dict.fromkeys(self.minimize, Direction.MINIMIZE)

    def digest(self) -> str:
        """Constant: a table's own content is known by its trainer's options."""
        return "noise-1"

    def split(self, split: Split) -> "tuple[Tensor, Tensor]":
        return self.probe()

    def probe(self) -> "tuple[Tensor, Tensor]":
        return self._noise

    @cached_property
    def _noise(self) -> "tuple[Tensor, Tensor]":
        import torch

        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(_EXAMPLES, *self.input_shape, generator=generator, dtype=torch.float32)
        return inputs, torch.arange(_EXAMPLES) % self.classes

    def loss(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        """The cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def evaluate(self, outputs: "Tensor", targets: "Tensor") -> Mapping[str, float]:
        """The share of the noise that is classified right, under the name of every metric.

        It says nothing of a network: a trial's metrics are the table's.
        """
        accuracy = float((outputs.argmax(-1) == targets).double().mean())
        return dict.fromkeys(self.metrics, accuracy)


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"tabular": Tabular}
