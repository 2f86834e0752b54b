"""Starts a search from what an earlier study found: its best decisions are tried first."""

import json
from collections.abc import Iterator
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from automl.errors import UsageError
from automl.front import point_of
from automl.registry import Kind
from automl.spec import Spec
from automl.studies import Study, keeps_to_requirements

_MOST = 5


def best_decisions(source: Study, spec: Spec, room: int) -> list[dict[str, Any]]:
    """The decisions of the five best trials of a study, no two alike; room: for so many at most.

    The front comes first where there are several objectives. What a trainer closed is taken as
    decided. spec: of the search that is to start from them.

    Raises:
        UsageError: it searched another space, or none of its trials is any good.
    """
    theirs, ours = (each.parts()[Kind.SPACE].reference for each in (source.spec, spec))
    if theirs != ours:
        raise UsageError(
            f"--from {source.name}: it searched space {theirs}, whose decisions space {ours} "
            "does not ask for"
        )
    found = list(_different(source))
    if not found:
        raise UsageError(f"--from {source.name}: {source.without_best()}")
    return found[: min(room, _MOST)]


def _different(source: Study) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for trial in _best_first(source):
        view = source.views.trial(trial.number)
        decisions = {**trial.params, **((view and view.closed) or {})}
        key = json.dumps(decisions, sort_keys=True)
        if key not in seen:
            seen.add(key)
            yield decisions


def _best_first(source: Study) -> Iterator[FrozenTrial]:
    front = source.best_trials()
    yield from front
    trials = source.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    rest = [t for t in trials if keeps_to_requirements(t) and t not in front]
    points = {trial.number: point_of(trial.values, source.objectives) for trial in rest}
    yield from sorted(rest, key=lambda trial: points[trial.number], reverse=True)
