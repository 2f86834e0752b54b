"""The examples of a split on their device, and the batches of an epoch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from automl import Split, Task, TrialError


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


def smoothed(targets: Tensor, smoothing: float, task: Task) -> Tensor:
    """Convert class numbers [n] to smoothed probabilities [n, classes], if smoothing is set.

    Raises:
        TrialError: The targets are not class numbers.
    """
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
