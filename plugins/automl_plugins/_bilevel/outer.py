"""The examples of the outer loss, by which hyperparameters are tuned."""

from enum import Enum

import torch
from torch import Tensor

from automl import Run, Split, Task, TrialError
from automl_plugins._training.examples import Examples


class Outer(Enum):
    """The examples of the outer loss: those to validate on, or a share of those to train on."""

    VALIDATION = "validation"
    SHARE = "share"


def divided(
    outer: Outer, share: float, task: Task, run: Run, trainer: str
) -> tuple[Tensor, Examples]:
    """Return the numbers of the examples to train on, and the examples of the outer loss.

    Args:
        outer: Which examples the outer loss has.
        share: The share of the training examples that it has, if these.
        task: The task.
        run: The trial's run; its seed draws the share.
        trainer: The trainer's name, for error messages.

    Raises:
        TrialError: One of both is empty.
    """
    device = torch.device(run.device)
    every = Examples.of(task, Split.TRAIN, device)
    if outer is Outer.VALIDATION:
        rows, given = torch.arange(len(every)), Examples.of(task, Split.VALIDATION, device)
    else:
        generator = torch.Generator().manual_seed(run.seed_for("share"))
        order = torch.randperm(len(every), generator=generator)
        kept, taken = order.tensor_split([len(every) - round(share * len(every))])
        rows, taken = kept.sort().values, taken.sort().values
        given = Examples(every.inputs[taken], every.targets[taken])
    if not len(given) or not len(rows):
        raise TrialError(
            f"trainer {trainer} has {len(rows)} examples to train on and {len(given)} for the "
            f"outer loss with outer={outer.value}: choose another outer or share"
        )
    return rows, given
