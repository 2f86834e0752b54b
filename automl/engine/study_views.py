"""What strategies and pruners see of a judged study, through the storage that Optuna gives them."""

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any, cast

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

Shown = Callable[[Sequence[FrozenTrial]], list[FrozenTrial]]
"""Returns which trials of a study to show, and as what."""


class StorageView:
    """A storage that shows a study's trials in another way; everything else is the inner one's.

    Args:
        storage: The inner storage.
        shown: Returns the trials to show, given all of them.
    """

    def __init__(self, storage: BaseStorage, shown: Shown) -> None:
        self._storage, self._shown = storage, shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = self._shown(self._storage.get_all_trials(study_id, deepcopy=False))
        kept = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(kept) if deepcopy else kept

    def get_n_trials(self, study_id: int, state: Any = None) -> int:
        return BaseStorage.get_n_trials(cast(BaseStorage, self), study_id, state)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return BaseStorage.get_best_trial(cast(BaseStorage, self), study_id)
