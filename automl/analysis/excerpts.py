"""Copies some of a study's trials to an Optuna study in memory, for Optuna's plots and figures."""

from collections.abc import Container, Sequence
from typing import TypeVar

import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.plugin.report import Objective
from automl.study.trial_copies import with_changes

T = TypeVar("T")


class _FixedStorage(InMemoryStorage):
    """A storage whose study has exactly the given trials, with their own numbers."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._trials_given = list(trials)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        # Trials are not copied: no caller changes one, and copying would take most of the time.
        return [t for t in self._trials_given if states is None or t.state in states]


def excerpt(
    trials: Sequence[FrozenTrial], objectives: Sequence[Objective], name: str = "study"
) -> optuna.Study:
    """Return an Optuna study of these trials alone, with their own numbers.

    Args:
        trials: The trials.
        objectives: The study's objectives, in the order of the trials' values.
        name: The study's name.
    """
    study = optuna.create_study(
        storage=_FixedStorage(trials),
        study_name=name,
        directions=[StudyDirection[objective.direction.name] for objective in objectives],
    )
    study.set_metric_names([objective.metric for objective in objectives])
    return study


def valued(trials: Sequence[FrozenTrial], place: int) -> list[FrozenTrial]:
    """Return copies of the trials as if one objective were the only one.

    Args:
        trials: The trials.
        place: The index of that objective.
    """
    done = TrialState.COMPLETE
    return [with_changes(t, values=[t.values[place]] if t.state is done else None) for t in trials]


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` of the items, evenly spaced, including the first."""
    if len(items) <= limit:
        return list(items)
    return [items[place * len(items) // limit] for place in range(limit)]
