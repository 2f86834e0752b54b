"""Decisions on how to train, that several spaces share."""

from collections.abc import Sequence
from typing import Any

import optuna

_OPTIMIZERS = ("adamw", "sgd")
_BATCH_SIZES = (32, 64, 128, 256)


def gradient_descent(
    trial: optuna.trial.BaseTrial,
    min_lr: float,
    max_lr: float,
    optimizers: Sequence[str] = _OPTIMIZERS,
    batch_sizes: Sequence[int] = _BATCH_SIZES,
) -> dict[str, Any]:
    """Hyperparameters of minibatch gradient descent, by the names of trainer `supervised`."""
    return {
        "optimizer": trial.suggest_categorical("optimizer", optimizers),
        "lr": trial.suggest_float("lr", min_lr, max_lr, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True),
        "batch_size": trial.suggest_categorical("batch_size", batch_sizes),
    }
