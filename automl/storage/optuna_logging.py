"""What Optuna says of itself, which is no news for who searches."""

import warnings

import optuna


def quieten_optuna() -> None:
    """Let Optuna log warnings alone, and not say in each process what may change some day.

    For the whole process: a filter set for a moment, trial by trial, would have Python forget
    which other warnings it has shown already, and show them in each trial.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
