"""Exhaustion: ends a study whose strategy has nothing left to propose.

A strategy such as a grid search then calls `study.stop()`. Other strategies only repeat
candidates that are known: the ledger counts those, see `automl/ledger/budget.py`.
"""

import optuna

from automl.ledger.ledger import Ledger
from automl.trial_code.boundary import EngineCode


def end_study_on_stop(study: optuna.Study, ledger: Ledger, strategy: str) -> None:
    """Make the `stop` method of an Optuna study end the search.

    Optuna's own method works only inside `optimize`, and raises an error elsewhere.

    Args:
        study: The Optuna study that is passed to the strategy.
        ledger: The ledger of the search.
        strategy: The strategy's name, for the message.
    """

    def stop() -> None:
        with EngineCode():
            ledger.stop_exhausted(f"strategy {strategy} has nothing left to propose")

    study.stop = stop  # type: ignore[method-assign]
