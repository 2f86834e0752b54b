"""The examples of a split on their device, and the batches of an epoch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from automl import Split, Task


@dataclass(frozen=True)
class Examples:
    """Examples on one device.

    Attributes:
        inputs: Shape [n, *input_shape].
        targets: Shape [n, ...].
    """

    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, task: Task, split: Split, device: torch.device) -> "Examples":
        """Return a split of a task."""
        inputs, targets = task.split(split)
        return cls(inputs.to(device), targets.to(device))

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, size: int, seed: int) -> tuple[Tensor, ...]:
        """Return the rows of each batch of an epoch, in the same order on every device."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self), generator=generator).to(self.inputs.device)
        batches = torch.split(rows, size)
        # Batch normalisation cannot train on a single example.
        lone = len(batches) > 1 and len(batches[-1]) == 1 < size
        return batches[:-1] if lone else batches

    def batch_count(self, size: int) -> int:
        """Return the number of batches of an epoch."""
        whole, rest = divmod(len(self), size)
        return whole + (rest > (1 if whole and size > 1 else 0))
