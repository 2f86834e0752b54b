"""What people ask the ledger: counts, trials, reports, workers; all of it only reads."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session, aliased

from automl.ledger.budget import is_over
from automl.ledger.clock import now
from automl.ledger.evaluations import means
from automl.ledger.models import (
    EvaluationRow,
    EvaluationState,
    Phase,
    ReportRow,
    Role,
    StopReason,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from automl.ledger.transaction import reading
from automl.plugin.report import Reason, State
from automl.storable import COUNTS

_BATCH = 500


@dataclass(frozen=True)
class Budget:
    """What a study may spend, what it has taken, and why it stopped early, if it did.

    seconds_left: until the deadline. device_seconds, device_seconds_limit: time on devices, as
    charged so far and as allowed. over: no trial may train any more.
    """

    trials: int | None
    evaluations: int | None
    seconds_left: float | None
    device_seconds: float
    device_seconds_limit: float | None
    slots: int
    payable: int
    over: bool
    stopped: StopReason | None
    stopped_because: str | None


@dataclass(frozen=True)
class Counts:
    """How many trials of a study stand where.

    evaluated: those that ended and were trained. seconds: those spent in trainers.
    """

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    open: int = 0
    reused: int = 0
    evaluated: int = 0
    seconds: float = 0.0

    @property
    def trials(self) -> int:
        """Trials that have ended."""
        return self.complete + self.pruned + self.failed


@dataclass(frozen=True)
class TrialView:
    """A trial as people see it.

    expires_at, expired: the end of the lease on it, and whether that is past, by the database's
    clock.
    """

    id: int
    number: int
    phase: Phase
    state: State | None
    objectives: list[float] | None
    metrics: dict[str, Any]
    step: int | None
    attempt: int
    worker: str | None
    device: str | None
    expires_at: float | None
    expired: bool
    fingerprint: str | None
    level: str | None
    reused_from: int | None
    reused_study: str | None
    judges: int | None
    audits: bool
    costs: dict[str, Any]
    identification: dict[str, Any]
    closed: dict[str, Any] | None
    reason: Reason | None
    message: str | None
    traceback: str | None
    seconds: float | None
    device_seconds: float
    checkpoint: str | None
    started_at: float
    settled_at: float | None


@dataclass(frozen=True)
class ReportView:
    """One report of a trial."""

    id: int
    number: int
    attempt: int
    step: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class WorkerView:
    """A worker at a study and the trial it holds."""

    id: str
    device: str
    trial: int | None
    phase: Phase | None
    step: int | None


@dataclass(frozen=True)
class LevelHits:
    """Trials that were reused at one level, and the training time that saved."""

    level: str
    hits: int
    seconds_saved: float


@dataclass(frozen=True)
class Recognized:
    """How a study's candidates were recognised, and what that took.

    seconds: spent by level. verdicts: of probes. skipped: why none was made. The rest counts
    trials: graphs of no canonical form; digests that were equal where sketches were not; sketches
    that agreed where some digest was not equal; functions that a probe could not tell apart but
    exact certificates did; stored sketches that were damaged.
    """

    seconds: Mapping[str, float]
    verdicts: Mapping[str, int]
    skipped: Mapping[str, int]
    not_canonical: int
    collisions: int
    near_misses: int
    refused: int
    damaged: int


@dataclass(frozen=True)
class FunctionView:
    """What is known of one function: n complete evaluations, mean and variance by metric.

    The variance is that of single evaluations, unbiased; None where there is but one.
    """

    fingerprint: str
    n: int
    means: Mapping[str, float | None]
    variances: Mapping[str, float | None]


@dataclass(frozen=True)
class Views:
    """The ledger of one study, read-only; objectives: the metrics that `means` gives."""

    engine: Engine
    study: str
    objectives: tuple[str, ...] = ()

    @reading
    def budget(self, session: Session) -> Budget:
        row, left = session.execute(
            select(StudyRow, StudyRow.deadline - now()).where(StudyRow.uuid == self.study)
        ).one()
        return Budget(
            row.trials_limit,
            row.evaluations_limit,
            left,
            row.device_seconds,
            row.device_seconds_limit,
            row.slots,
            row.payable,
            is_over(session, self.study),
            row.stopped,
            row.stopped_because,
        )

    @reading
    def counts(self, session: Session) -> Counts:
        rows = session.execute(
            select(
                TrialRow.state,
                func.count(),
                func.count(TrialRow.reused_from),
                func.count(TrialRow.evaluation),
                func.coalesce(func.sum(TrialRow.seconds), 0.0),
            )
            .where(TrialRow.study == self.study)
            .group_by(TrialRow.state)
        ).all()
        by_state = {"open" if state is None else state.value: n for state, n, *_ in rows}
        return Counts(
            **by_state,
            reused=sum(row[2] for row in rows),
            evaluated=sum(row[3] - row[2] for row in rows if row[0] is not None),
            seconds=sum(float(row[4] or 0) for row in rows),
        )

    @reading
    def queued(self, session: Session) -> int:
        """How many trials were given their decisions beforehand, ended ones included."""
        given = TrialRow.given.is_not(None) & TrialRow.judges.is_(None)
        found = select(func.count(TrialRow.id)).where(TrialRow.study == self.study, given)
        return session.scalar(found) or 0

    @reading
    def progress(self, session: Session) -> int:
        """A number that grows with each report and each trial that ends."""
        mine = TrialRow.study == self.study
        reports = select(func.count(ReportRow.step)).join(TrialRow, TrialRow.id == ReportRow.trial)
        ended = select(func.count(TrialRow.id)).where(mine, TrialRow.phase == Phase.SETTLED)
        return (session.scalar(reports.where(mine)) or 0) + (session.scalar(ended) or 0)

    @reading
    def trial(self, session: Session, number: int) -> TrialView | None:
        if number not in COUNTS:
            return None
        found = select(TrialRow, now()).where(
            TrialRow.study == self.study, TrialRow.number == number
        )
        row = session.execute(found).first()
        return None if row is None else _trial(*row)

    @reading
    def trials(self, session: Session) -> list[TrialView]:
        """All trials with a number, in its order."""
        rows = session.execute(
            select(TrialRow, now())
            .where(TrialRow.study == self.study, TrialRow.number.is_not(None))
            .order_by(TrialRow.number)
        )
        return [_trial(*row) for row in rows]

    @reading
    def open_trials(self, session: Session) -> list[TrialView]:
        """All trials that have not ended, those without a number yet included."""
        rows = session.execute(
            select(TrialRow, now())
            .where(TrialRow.study == self.study, TrialRow.phase != Phase.SETTLED)
            .order_by(TrialRow.id)
        )
        return [_trial(*row) for row in rows]

    @reading
    def settled(self, session: Session, known: Collection[int]) -> list[TrialView]:
        """Trials that ended, but for those whose ids are known already."""
        fresh = [id for id in session.scalars(self._settled_ids()) if id not in known]
        rows = [
            row
            for batch in _batches(fresh)
            for row in session.scalars(select(TrialRow).where(TrialRow.id.in_(batch)))
        ]
        return [_trial(row) for row in sorted(rows, key=lambda r: (r.settled_at or 0, r.id))]

    @reading
    def settled_ids(self, session: Session) -> set[int]:
        """The ids of the trials that have ended."""
        return set(session.scalars(self._settled_ids()))

    def _settled_ids(self) -> Select[int]:
        return select(TrialRow.id).where(
            TrialRow.study == self.study, TrialRow.phase == Phase.SETTLED
        )

    @reading
    def reports(self, session: Session, known: Collection[int], after: int = 0) -> list[ReportView]:
        """Reports of a higher id than `after`, but for those that are known already."""
        rows = session.execute(
            select(ReportRow, TrialRow.number)
            .join(TrialRow, TrialRow.id == ReportRow.trial)
            .where(TrialRow.study == self.study, ReportRow.id > after)
            .order_by(ReportRow.id)
        )
        return [
            ReportView(row.id, -1 if number is None else number, row.attempt, row.step, row.metrics)
            for row, number in rows
            if row.id not in known
        ]

    @reading
    def curves(
        self, session: Session, numbers: Collection[int]
    ) -> dict[int, dict[int, dict[str, Any]]]:
        """Metrics by step of the trials with these numbers.

        Of a step that a later attempt reported again, the later one counts.
        """
        rows = [
            row
            for batch in _batches(sorted(numbers))
            for row in session.execute(
                select(TrialRow.number, ReportRow.step, ReportRow.metrics)
                .join(TrialRow, TrialRow.id == ReportRow.trial)
                .where(TrialRow.study == self.study, TrialRow.number.in_(batch))
                .order_by(ReportRow.id)
            )
        ]
        found: dict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
        for number, step, metrics in rows:
            found[number][step] = metrics
        return dict(found)

    @reading
    def workers(self, session: Session) -> list[WorkerView]:
        """The workers at this study now, each with what it does."""
        last = (
            select(func.max(ReportRow.step))
            .where(ReportRow.trial == TrialRow.id)
            .correlate(TrialRow)
            .scalar_subquery()
        )
        rows = session.execute(
            select(WorkerRow.id, WorkerRow.device, TrialRow.number, TrialRow.phase, last)
            .outerjoin(
                TrialRow,
                (TrialRow.worker == WorkerRow.id)
                & (TrialRow.study == self.study)
                & TrialRow.phase.in_([Phase.PROPOSING, Phase.TRAINING]),
            )
            .where(WorkerRow.study == self.study, WorkerRow.expires_at > now())
            .order_by(WorkerRow.id)
        ).all()
        return [WorkerView(*row) for row in rows]

    @reading
    def hits(self, session: Session) -> list[LevelHits]:
        """Reuse by level; what a hit saved is what its source had cost."""
        source = aliased(TrialRow)
        rows = session.execute(
            select(TrialRow.level, func.count(), func.coalesce(func.sum(source.seconds), 0.0))
            .outerjoin(
                source,
                (source.number == TrialRow.reused_from)
                & (source.study == func.coalesce(TrialRow.reused_study, TrialRow.study)),
            )
            .where(TrialRow.study == self.study, TrialRow.reused_from.is_not(None))
            .group_by(TrialRow.level)
            .order_by(TrialRow.level)
        ).all()
        return [LevelHits(str(level), n, float(saved or 0)) for level, n, saved in rows]

    @reading
    def recognized(self, session: Session) -> Recognized:
        """How the study's candidates were recognised."""
        stored = session.scalars(
            select(TrialRow.identification).where(
                TrialRow.study == self.study, TrialRow.identification.is_not(None)
            )
        )
        known = [one for one in stored if one is not None]
        seconds: Counter[str] = Counter()
        for one in known:
            seconds.update(one.get("seconds", {}))
        return Recognized(
            seconds=dict(sorted(seconds.items())),
            verdicts=_tally(known, "verdict"),
            skipped=_tally(known, "skipped"),
            not_canonical=_count(known, "not_canonical"),
            collisions=_count(known, "collision"),
            near_misses=_count(known, "near_miss"),
            refused=_count(known, "refused"),
            damaged=_count(known, "damaged"),
        )

    @reading
    def functions(self, session: Session) -> list[FunctionView]:
        """The functions that were evaluated, in order of fingerprint."""
        return [
            FunctionView(name, len(found), means(found), _variances(found))
            for name, found in sorted(self._complete(session).items())
        ]

    @reading
    def means(self, session: Session) -> dict[int, tuple[float, ...]]:
        """Mean objectives by trial number, where its function was evaluated more than once.

        A trial was told what was known when it ended; this is what is known by now.
        """
        several = {k: means(v) for k, v in self._complete(session).items() if len(v) > 1}
        rows = session.execute(
            select(TrialRow.number, EvaluationRow.fingerprint, TrialRow.costs)
            .join(EvaluationRow, EvaluationRow.id == TrialRow.evaluation)
            .where(TrialRow.study == self.study, TrialRow.state == State.COMPLETE)
        )
        found = {
            number: [{**several[name], **(costs or {})}.get(metric) for metric in self.objectives]
            for number, name, costs in rows
            if number is not None and name in several
        }
        return {n: tuple(v for v in values if v is not None) for n, values in found.items()}

    def _complete(self, session: Session) -> dict[str, list[dict[str, Any]]]:
        """The metrics of all evaluations that may be served, by function."""
        rows = session.execute(
            select(EvaluationRow.fingerprint, EvaluationRow.metrics)
            .where(
                EvaluationRow.study == self.study,
                EvaluationRow.state == EvaluationState.COMPLETE,
                EvaluationRow.role == Role.SHARED,
            )
            .order_by(EvaluationRow.id)
        )
        found = defaultdict(list)
        for name, metrics in rows:
            found[name].append(metrics or {})
        return dict(found)


def _tally(known: Iterable[Mapping[str, Any]], name: str) -> dict[str, int]:
    return dict(sorted(Counter(one[name] for one in known if name in one).items()))


def _count(known: Iterable[Mapping[str, Any]], name: str) -> int:
    return sum(int(one.get(name, 0)) for one in known)


def _variances(found: list[dict[str, Any]]) -> dict[str, float | None]:
    numbers = {
        name: [one[name] for one in found if one.get(name) is not None] for name in means(found)
    }
    return {k: statistics.variance(v) if len(v) > 1 else None for k, v in numbers.items()}


def _batches(ids: list[int]) -> list[list[int]]:
    """Lists short enough for the parameters of one statement."""
    return [ids[start : start + _BATCH] for start in range(0, len(ids), _BATCH)]


def _trial(row: TrialRow, time: float = 0.0) -> TrialView:
    """A trial at this time, by the database's clock."""
    return TrialView(
        id=row.id,
        number=-1 if row.number is None else row.number,
        phase=row.phase,
        state=row.state,
        objectives=row.objectives,
        metrics=row.metrics or {},
        step=row.step,
        attempt=row.attempt,
        worker=row.worker,
        device=row.device,
        expires_at=row.expires_at,
        expired=row.expires_at is not None and row.expires_at <= time,
        fingerprint=row.fingerprint,
        level=row.level,
        reused_from=row.reused_from,
        reused_study=row.reused_study,
        judges=row.judges,
        audits=row.audits,
        costs=row.costs or {},
        identification=row.identification or {},
        closed=row.closed,
        reason=row.reason,
        message=row.message,
        traceback=row.traceback,
        seconds=row.seconds,
        device_seconds=row.device_seconds,
        checkpoint=row.checkpoint,
        started_at=row.started_at,
        settled_at=row.settled_at,
    )
