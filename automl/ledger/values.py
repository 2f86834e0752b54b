"""What the ledger hands out: leases, answers to a fingerprint, and trials that have ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from automl.errors import AutoMLError
from automl.ledger.models import TrialRow
from automl.plugin.report import COSTS, Outcome, State


class LeaseLostError(AutoMLError):
    """Another worker has taken this trial over, so this one may no longer settle it."""


class BudgetSpentError(AutoMLError):
    """The study's time is over, so the trial under way is given back as it stands."""


@dataclass(frozen=True)
class Left:
    """What a worker left that ended without signing off; number: of the trial it had, if any."""

    number: int | None


@dataclass(frozen=True)
class Worker:
    """Who asks for a trial, and on which device it would train."""

    id: str
    device: str = "cpu"


@dataclass(frozen=True)
class Lease:
    """The right to settle one trial, until it expires and somebody takes it over.

    number: the trial's in Optuna, once known. evaluation, fingerprint, level: once claimed.
    given: decisions that are not the strategy's to draw. judges: the number of the trial that it
    judges.
    repeats_known: its function was known, and is evaluated again to check or to renew it.
    device_seconds: what earlier attempts were charged. checkpoint: the SHA-256 of what the last
    one left to go on from.
    """

    id: int
    token: int
    attempt: int
    number: int | None = None
    evaluation: int | None = None
    fingerprint: str | None = None
    level: str | None = None
    given: Mapping[str, Any] | None = None
    judges: int | None = None
    repeats_known: bool = False
    device_seconds: float = 0.0
    checkpoint: str | None = None

    @property
    def fresh(self) -> bool:
        """Whether no earlier attempt can have made Optuna's trial yet."""
        return self.attempt == 1 and self.number is None


@dataclass(frozen=True)
class TimeLeft:
    """Seconds until the deadline, None without one; metered: device time has to be bought."""

    seconds: float | None
    metered: bool


@dataclass(frozen=True)
class Settled:
    """A trial that has ended in the ledger and has to be told to Optuna.

    reused_from: the number of the trial whose result it has; in study `reused_study`, by its
    UUID, where that is another one.
    """

    id: int
    number: int
    outcome: Outcome
    fingerprint: str | None
    level: str | None
    reused_from: int | None
    attempt: int
    seconds: float | None
    judges: int | None = None
    reused_study: str | None = None


@dataclass(frozen=True)
class Hit:
    """The fingerprint is known: the trial is settled with what it gave."""

    settled: Settled


@dataclass(frozen=True)
class Parked:
    """Another worker evaluates this fingerprint now: the trial waits for its result."""

    id: int


@dataclass(frozen=True)
class Claimed:
    """The fingerprint is this worker's to evaluate."""

    lease: Lease


Answer = Hit | Parked | Claimed


@dataclass(frozen=True)
class Settlement:
    """What settling a trial settled: itself and the trials parked on it, to be told."""

    settled: tuple[Settled, ...]
    next: Lease | None


def settled_of(row: TrialRow) -> Settled:
    """A settled row as a value."""
    outcome = Outcome(
        state=row.state or State.FAILED,
        values=None if row.objectives is None else tuple(row.objectives),
        metrics=row.metrics or {},
        step=row.step,
        closed=row.closed,
        reason=row.reason,
        message=row.message,
        traceback=row.traceback,
        cause=row.cause,
    )
    return Settled(
        id=row.id,
        number=-1 if row.number is None else row.number,
        outcome=outcome,
        fingerprint=row.fingerprint,
        level=row.level,
        reused_from=row.reused_from,
        attempt=row.attempt,
        seconds=row.seconds,
        judges=row.judges,
        reused_study=row.reused_study,
    )


def result_columns(outcome: Outcome) -> dict[str, Any]:
    """What a trial stores of its outcome."""
    return {
        **quality_columns(outcome),
        "objectives": None if outcome.values is None else list(outcome.values),
        "metrics": outcome.finite_metrics(),
    }


def quality_columns(outcome: Outcome) -> dict[str, Any]:
    """What an evaluation stores of its outcome: nothing that another candidate may not have."""
    metrics = {k: v for k, v in outcome.finite_metrics().items() if k not in COSTS}
    return {
        "metrics": metrics,
        "step": outcome.step,
        "closed": None if outcome.closed is None else dict(outcome.closed),
    }
