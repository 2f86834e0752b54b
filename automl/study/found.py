"""The best trials of a study, with their candidates, ready to build."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from automl.space.candidate import Candidate
from automl.spec import ATTRIBUTE
from automl.study.parts import Parts, rebuild
from automl.study.study import Study


@dataclass(frozen=True)
class Found:
    """A trial that a search found, and its candidate, ready to build.

    decisions: the strategy's, and those that the trainer left open and then closed.
    """

    number: int
    values: Mapping[str, float]
    decisions: Mapping[str, Any]
    metrics: Mapping[str, float]
    candidate: Candidate
    reused_from: int | None = None


def best(study: Study, parts: Parts) -> list[Found]:
    """The best trial of a study, or with several objectives its Pareto front."""
    return [found(study, parts, trial) for trial in study.best_trials()]


def found(study: Study, parts: Parts, trial: FrozenTrial) -> Found:
    """A trial with its candidate rebuilt from its decisions."""
    view = study.views.trial(trial.number)
    decisions = {**trial.params, **((view and view.closed) or {})}
    names = [objective.metric for objective in study.objectives]
    return Found(
        number=trial.number,
        values=dict(zip(names, trial.values, strict=True)),
        decisions=decisions,
        metrics=view.metrics if view else {},
        candidate=rebuild(parts, decisions),
        reused_from=trial.user_attrs.get(ATTRIBUTE, {}).get("reused_from"),
    )
