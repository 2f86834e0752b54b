"""Sums up a study for screens and pages: importances, workers' time, failures by reason."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from automl.analysis.excerpts import evenly, excerpt, valued
from automl.engine.worker_ids import host_and_pid, is_dead
from automl.ledger.models import Phase
from automl.ledger.queries import TrialView
from automl.plugin.report import Objective, State
from automl.study.judged import comparable

LOOKED_AT = 2_000
"""Importances are computed from at most this many trials, so that they are fast."""
FEWEST = 20
"""The fewest complete trials that importances are computed from; with fewer they are noise."""


@dataclass(frozen=True)
class Importances:
    """How much each decision mattered for one objective.

    Attributes:
        metric: The objective's metric.
        shares: The share of each decision, largest first; they add up to 1.
        trials: How many complete trials the shares are computed from.
        missing: Why there are no shares; None if there are.
    """

    metric: str
    shares: Mapping[str, float] = field(default_factory=dict)
    trials: int = 0
    missing: str | None = None


@dataclass(frozen=True)
class WorkerTime:
    """The trials that one worker trained.

    Attributes:
        id: The worker's name in the ledger.
        device: Its device.
        trials: How many trials it trained.
        seconds: How long it trained.
        began: When its first trial began, in seconds since 1970.
        ended: When its last trial ended, in seconds since 1970.
    """

    id: str
    device: str
    trials: int
    seconds: float
    began: float
    ended: float

    @property
    def name(self) -> str:
        """The worker's host and process, to show to users."""
        return host_and_pid(self.id)

    @property
    def busy(self) -> float | None:
        """The share of its time that it trained; None if no time passed."""
        passed = self.ended - self.began
        return min(1.0, self.seconds / passed) if passed > 0 else None


@dataclass(frozen=True)
class Failures:
    """Trials that failed for one reason and with one message; the traceback is the last one's."""

    reason: str
    message: str
    numbers: tuple[int, ...]
    traceback: str | None


def importances(
    trials: Sequence[FrozenTrial], objectives: Sequence[Objective]
) -> list[Importances]:
    """Return the importance of decisions for each objective, by Optuna's own evaluator."""
    done = [t for t in comparable(trials) if t.state is TrialState.COMPLETE]
    return [
        _importances(evenly(valued(done, place), LOOKED_AT), objective)
        for place, objective in enumerate(objectives)
    ]


def _importances(done: Sequence[FrozenTrial], objective: Objective) -> Importances:
    missing = why_unimportant(done)
    if missing is not None:
        return Importances(objective.metric, missing=missing)
    with warnings.catch_warnings():
        # Optuna warns of few trials, but their number is shown next to the shares.
        warnings.simplefilter("ignore")
        shares = optuna.importance.get_param_importances(excerpt(done, [objective]))
    return Importances(objective.metric, shares, len(done))


def why_unimportant(done: Sequence[FrozenTrial]) -> str | None:
    """Return why these complete trials have no importances; None if they have."""
    decisions = {name for trial in done for name in trial.params}
    if not done:
        return "no trial has completed"
    if len(decisions) < 2:
        return f"there is {'one decision' if decisions else 'no decision'} to compare"
    if len(done) < FEWEST:
        return f"importance needs {FEWEST} complete trials, there are {len(done)}"
    if len({tuple(trial.values) for trial in done}) == 1:
        return "all trials have the same value"
    return None


def worker_times(trials: Iterable[TrialView]) -> list[WorkerTime]:
    """Return the workers that trained, longest time first."""
    mine = defaultdict(list)
    for trial in trials:
        if trial.worker is not None and trial.reused_from is None and trial.seconds is not None:
            mine[trial.worker].append(trial)
    times = [_time(worker, trained) for worker, trained in mine.items()]
    return sorted(times, key=lambda time: (-time.seconds, time.id))


def _time(worker: str, trained: Sequence[TrialView]) -> WorkerTime:
    return WorkerTime(
        worker,
        trained[-1].device or "-",
        len(trained),
        sum(trial.seconds or 0.0 for trial in trained),
        min(trial.started_at for trial in trained),
        max(trial.settled_at or trial.started_at for trial in trained),
    )


def silent_since(trial: TrialView, lease_seconds: float) -> float | None:
    """Return when a trial's worker last renewed its lease, if it is silent.

    A worker is silent once its process is known to be dead, or its lease has expired.

    Args:
        trial: A trial.
        lease_seconds: How long a lease lasts.

    Returns:
        Seconds since 1970 by the database's clock; None if the worker may be running.
    """
    if trial.worker is None or trial.phase not in (Phase.PROPOSING, Phase.TRAINING):
        return None
    if not trial.expired and not is_dead(trial.worker):
        return None
    return max(trial.started_at, (trial.expires_at or 0.0) - lease_seconds)


def failures(trials: Iterable[TrialView]) -> list[Failures]:
    """Group the failed trials by reason and message, most frequent first."""
    found: dict[tuple[str, str], list[TrialView]] = defaultdict(list)
    for trial in trials:
        if trial.state is State.FAILED:
            reason = trial.reason.value if trial.reason else "unknown"
            found[reason, trial.message or "no message"].append(trial)
    grouped = [
        Failures(reason, message, tuple(t.number for t in failed), failed[-1].traceback)
        for (reason, message), failed in found.items()
    ]
    return sorted(grouped, key=lambda each: (-len(each.numbers), each.numbers))
