"""Terms of the training loss: smoothed targets, mixed examples, weighted examples, penalties.

Sources: C. Szegedy et al.: Rethinking the Inception Architecture, arXiv 1512.00567 (label
smoothing); H. Zhang et al.: mixup, arXiv 1710.09412.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from automl import TrialError

Loss = Callable[[Tensor, Tensor], Tensor]


def check_smoothing(targets: Tensor) -> None:
    """Check that targets can be smoothed.

    Raises:
        TrialError: They are not class numbers.
    """
    if targets.is_floating_point() or targets.dim() != 1:
        raise TrialError(
            f"label_smoothing needs targets that are class numbers [n]; the task's targets have "
            f"type {targets.dtype} and shape {list(targets.shape)}: set it to 0"
        )


def smoothed(targets: Tensor, smoothing: float | Tensor, classes: int) -> Tensor:
    """Convert class numbers [n] to smoothed probabilities [n, classes].

    Args:
        targets: The class numbers.
        smoothing: The share that is spread over all classes; a tensor is a scalar or has one share
            for each example [n].
        classes: The number of classes.
    """
    exact = nn.functional.one_hot(targets, classes).to(torch.get_default_dtype())
    if isinstance(smoothing, Tensor) and smoothing.dim():
        smoothing = smoothing.unsqueeze(1)
    return exact * (1 - smoothing) + smoothing / classes


class Mixing:
    """Mixes each example of a batch with another one of the batch.

    The share of the other one is drawn from Beta(alpha, alpha), once for each batch.
    """

    def __init__(self, seed: int) -> None:
        self._numbers = np.random.default_rng(seed)

    def draw(self, alpha: float, rows: Tensor) -> tuple[float, Tensor]:
        """Return the first one's share, and the position of each example's other one.

        Args:
            alpha: The strength of the mixing, above 0.
            rows: The numbers of the batch's examples.
        """
        share = float(self._numbers.beta(alpha, alpha))
        return share, torch.from_numpy(self._numbers.permutation(len(rows))).to(rows.device)


def check_mixing(inputs: Tensor) -> None:
    """Check that inputs can be mixed.

    Raises:
        TrialError: They are not real numbers.
    """
    if not inputs.is_floating_point():
        raise TrialError(
            f"mixup needs inputs that are real numbers; the task's inputs have type "
            f"{inputs.dtype}: set it to 0"
        )


def weighted(loss: Loss, weights: float | Tensor) -> Loss:
    """Return a loss that multiplies each example's loss by a weight before it takes the mean.

    Args:
        loss: The mean loss of a batch, which must be the mean of its examples' losses.
        weights: A number, a scalar, or one weight for each example [n]; a tensor may carry a
            gradient.
    """
    if not isinstance(weights, Tensor) or weights.dim() == 0:
        same = not isinstance(weights, Tensor) and weights == 1
        return loss if same else lambda outputs, targets: weights * loss(outputs, targets)

    def of_one(output: Tensor, target: Tensor) -> Tensor:
        return loss(output.unsqueeze(0), target.unsqueeze(0))

    def of_batch(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = torch.func.vmap(of_one)(outputs, targets)
        return (losses * weights).mean()

    return of_batch


def l2_penalty(parameters: Sequence[Tensor], strength: float | Tensor) -> Tensor:
    """Return half the squared norm of parameters, times the strength.

    Args:
        parameters: The parameters.
        strength: A number, a scalar, one number for each of the parameters, or one for each of
            their elements, in order; a tensor may carry a gradient.
    """
    if isinstance(strength, Tensor) and strength.dim() and len(strength) == len(parameters):
        return (strength * torch.stack([p.square().sum() for p in parameters])).sum() / 2
    # One operation on all weights is faster than one for each tensor.
    squares = torch.cat([p.flatten() for p in parameters]).square()
    if isinstance(strength, Tensor) and strength.dim():
        return (strength * squares).sum() / 2
    return strength / 2 * squares.sum()
