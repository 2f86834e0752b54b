"""Silences Optuna's own log output."""

import warnings

import optuna


def silence_optuna() -> None:
    """Log only Optuna's warnings, without those about experimental features.

    This applies to the whole process. A temporary filter would make Python forget which other
    warnings it has shown, and show them again in each trial.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
