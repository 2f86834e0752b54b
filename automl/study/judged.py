"""Judged studies: the values of a tuner's own trials and of those that judge them are kept apart.

A tuner's reports are measured while its decisions still change, and often with data that it tuned
them on. So they say little about the decisions that it found, and nothing compares the two.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from automl.plugin.report import Objective
from automl.spec import ATTRIBUTE
from automl.study.pareto import point_of, unbeaten
from automl.study.trial_copies import with_changes

_PENDING: dict[str, Any] = {"state": TrialState.RUNNING, "values": None}


def judges_of(trial: FrozenTrial) -> int | None:
    """The number of the trial that this one judges; None if it judges none."""
    number: int | None = trial.user_attrs.get(ATTRIBUTE, {}).get("judges")
    return number


def source_of(trial: FrozenTrial) -> int | None:
    """The number of the trial of this study that this one was reused from, if any."""
    known = trial.user_attrs.get(ATTRIBUTE, {})
    return None if "reused_study" in known else known.get("reused_from")


def judging(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Those of the trials that judge others."""
    return [trial for trial in trials if judges_of(trial) is not None]


def comparable(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials whose values may be compared with each other, and say how good decisions are.

    Those are the trials that judge others as soon as one of them has completed, and the tuner's
    own until then. In a study without a judge, they are all trials.
    """
    judged = judging(trials)
    if any(trial.state is TrialState.COMPLETE for trial in judged):
        return judged
    return [trial for trial in trials if judges_of(trial) is None]


def as_judged(trials: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> list[FrozenTrial]:
    """What a strategy sees of a judged study: the trials that it proposed, as they were judged.

    Each has the state, values, reports and constraints of the trial that judges it, and is running
    until that one has ended. With several such trials, the best one counts. The tuner's own values
    and reports do not appear.

    Args:
        trials: All trials of the study.
        objectives: The study's objectives.
    """
    verdicts: dict[int | None, list[FrozenTrial]] = defaultdict(list)
    for trial in judging(trials):
        verdicts[judges_of(trial)].append(trial)
    best = {number: _verdict(found, objectives) for number, found in verdicts.items()}
    own = (trial for trial in trials if judges_of(trial) is None)
    # A result that was reused is judged by what judges its source, which may be trial 0.
    return [_as_judged(t, best.get(t.number, best.get(source_of(t)))) for t in own]


def _verdict(found: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> FrozenTrial:
    done = [trial for trial in found if trial.state is TrialState.COMPLETE]
    if done:
        return done[unbeaten([point_of(trial.values, objectives) for trial in done])[0]]
    return min(found, key=lambda trial: (trial.state.is_finished(), trial.state.name != "PRUNED"))


def _as_judged(trial: FrozenTrial, verdict: FrozenTrial | None) -> FrozenTrial:
    if trial.state is not TrialState.COMPLETE:
        return with_changes(trial, values=None, intermediate_values={})
    if verdict is None or not verdict.state.is_finished():
        return with_changes(trial, **_PENDING, intermediate_values={})
    return with_changes(
        trial,
        state=verdict.state,
        values=verdict.values,
        intermediate_values=verdict.intermediate_values,
        system_attrs={**trial.system_attrs, **verdict.system_attrs},
    )
