"""Decisions on how to train, shared by several spaces."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import optuna

from automl import Task

_OPTIMIZERS = ("adamw", "sgd")
_BATCH_SIZES = (32, 64, 128, 256)
_MAX_SMOOTHING = 0.2
# Less than one epoch, which may be the whole training.
_MAX_WARMUP = 0.9


class Extent(Enum):
    """The number of decisions; FULL adds others to the basic ones."""

    BASIC = "basic"
    FULL = "full"


def gradient_descent(
    trial: optuna.trial.BaseTrial,
    min_lr: float,
    max_lr: float,
    optimizers: Sequence[str] = _OPTIMIZERS,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
) -> dict[str, Any]:
    """Decide on hyperparameters of gradient descent, under the names of trainer `supervised`."""
    return {
        "optimizer": trial.suggest_categorical("optimizer", optimizers),
        "lr": trial.suggest_float("lr", min_lr, max_lr, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
        "batch_size": trial.suggest_categorical("batch_size", batch_sizes),
    }


def refinements(trial: optuna.trial.BaseTrial, task: Task, extent: Extent) -> dict[str, Any]:
    """Decide on warm-up and, for classes, label smoothing; only in the full extent."""
    if extent is Extent.BASIC:
        return {}
    warmup = {"warmup_epochs": trial.suggest_float("warmup_epochs", 0.0, _MAX_WARMUP)}
    return warmup | (smoothing(trial) if has_classes(task) else {})


def smoothing(trial: optuna.trial.BaseTrial) -> dict[str, Any]:
    """Decide on label smoothing."""
    return {"label_smoothing": trial.suggest_float("label_smoothing", 0.0, _MAX_SMOOTHING)}


def has_classes(task: Task) -> bool:
    """Return whether each example's target is a class number."""
    targets = task.probe()[1]
    return targets.dim() == 1 and not targets.is_floating_point()


def example_weights(trial: optuna.trial.BaseTrial) -> dict[str, Any]:
    """Decide on the weight in the loss of every training example; a trainer may find one each."""
    return {"example_weights": trial.suggest_float("example_weights", 0.0, 1.0)}
