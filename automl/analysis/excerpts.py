"""Some of a study's trials as an Optuna study in memory, for all that Optuna computes and draws."""

import copy
from collections.abc import Container, Sequence
from typing import Any, TypeVar

import optuna
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from automl.plugin.report import Objective

T = TypeVar("T")


class _Given(InMemoryStorage):
    """A storage whose study has the given trials, under the numbers that they have."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._given = list(trials)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        # Copies would be made for whoever changes a trial, and would take longest of all.
        return [t for t in self._given if states is None or t.state in states]


def excerpt(
    trials: Sequence[FrozenTrial], objectives: Sequence[Objective], name: str = "study"
) -> optuna.Study:
    """A study of these trials alone; adding trials would give those numbers of their own."""
    study = optuna.create_study(
        storage=_Given(trials),
        study_name=name,
        directions=[StudyDirection[objective.direction.name] for objective in objectives],
    )
    study.set_metric_names([objective.metric for objective in objectives])
    return study


def valued(trials: Sequence[FrozenTrial], place: int) -> list[FrozenTrial]:
    """The trials with one of their values alone, as if that were the only objective."""
    done = TrialState.COMPLETE
    return [with_changes(t, values=[t.values[place]] if t.state is done else None) for t in trials]


def with_changes(trial: FrozenTrial, **changes: Any) -> FrozenTrial:
    """A copy of a trial in which some attributes are others."""
    changed = copy.copy(trial)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """At most so many of the items, spread evenly over them, the first included."""
    if len(items) <= limit:
        return list(items)
    return [items[place * len(items) // limit] for place in range(limit)]
