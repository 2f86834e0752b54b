"""The ledger: who holds which trial, what each fingerprint gave, and how each trial ended.

Every method is one transaction. A worker holds a trial by a lease with a fencing token; settling
is one compare-and-set on that token, so that of two workers with one trial only one can end it.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Engine,
    Update,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from automl.errors import AutoMLError
from automl.ledger.clock import now
from automl.ledger.models import (
    Base,
    EvaluationRow,
    EvaluationState,
    Phase,
    ReportRow,
    StopReason,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from automl.ledger.transaction import reading, transactional
from automl.report import Outcome, Report, State

LEASE_SECONDS = 60.0
_OPEN = (Phase.PROPOSING, Phase.TRAINING)


class LeaseLostError(AutoMLError):
    """Another worker has taken this trial over, so this one may no longer settle it."""


@dataclass(frozen=True)
class Lease:
    """The right to settle one trial, until it expires and somebody takes it over."""

    id: int
    token: int
    attempt: int
    number: int | None = None


@dataclass(frozen=True)
class Settled:
    """A trial that has ended in the ledger and has to be told to Optuna."""

    id: int
    number: int
    outcome: Outcome
    fingerprint: str | None
    level: str | None
    reused_from: int | None
    attempt: int
    seconds: float | None
    token: int = 0


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


@dataclass(frozen=True)
class Worker:
    """Who asks for a trial, and on which device it would train."""

    id: str
    device: str = "cpu"


@dataclass(frozen=True)
class Ledger:
    """The ledger of one study.

    same_failures: this many first trials that fail for one cause stop the study.
    exhausted_after: this many known fingerprints in a row stop it.
    """

    engine: Engine
    study: str
    lease_seconds: float = LEASE_SECONDS
    same_failures: int = 3
    exhausted_after: int = 100
    share: bool = True

    # Budget.
    @transactional
    def open_study(
        self, session: Session, trials: int | None, evaluations: int | None, timeout: float | None
    ) -> None:
        """Enter a new study with its budget."""
        session.add(
            StudyRow(
                uuid=self.study,
                trials_limit=trials,
                evaluations_limit=evaluations,
                deadline=None if timeout is None else now() + timeout,
                created_at=now(),
            )
        )

    @transactional
    def extend(
        self, session: Session, trials: int | None, evaluations: int | None, timeout: float | None
    ) -> None:
        """Allow so many trials or evaluations more, a new deadline, and lift an early stop."""
        changes: dict[str, Any] = {"stopped": None, "stopped_because": None, "repeats": 0}
        changes["deadline"] = None if timeout is None else now() + timeout
        if trials is not None:
            changes["trials_limit"] = func.coalesce(StudyRow.trials_limit, StudyRow.slots) + trials
        if evaluations is not None:
            limit = func.coalesce(StudyRow.evaluations_limit, StudyRow.payable)
            changes["evaluations_limit"] = limit + evaluations
        session.execute(_update(StudyRow).where(self._mine()).values(changes))

    # Leases.
    @transactional
    def reserve(self, session: Session, worker: Worker, told: Collection[int] = ()) -> Lease | None:
        """Take a slot of the budget for a new trial; None where the budget is spent."""
        self._mark_told(session, told)
        return self._reserve(session, worker)

    @transactional
    def take_over(
        self, session: Session, worker: Worker, dead: Collection[str] = ()
    ) -> Lease | None:
        """Take the oldest trial whose lease has expired, or whose holder is known to be dead."""
        row = session.scalars(
            select(TrialRow)
            .where(
                TrialRow.study == self.study,
                TrialRow.phase.in_(_OPEN),
                or_(TrialRow.expires_at <= now(), TrialRow.worker.in_(dead)),
            )
            .order_by(TrialRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if row is None:
            return None
        row.token += 1
        row.attempt += 1
        row.worker, row.device = worker.id, worker.device
        row.expires_at = now() + self.lease_seconds
        return Lease(row.id, row.token, row.attempt, row.number)

    @transactional
    def renew(self, session: Session, lease: Lease, reports: Sequence[Report] = ()) -> None:
        """Hold on to a trial and store what it reported meanwhile.

        Raises:
            LeaseLostError: it was taken over.
        """
        self._change(session, lease, expires_at=now() + self.lease_seconds)
        self._add_reports(session, lease, reports)

    @transactional
    def give_back(self, session: Session, lease: Lease, number: int | None) -> None:
        """Let any worker go on with this trial at once; a slot with no trial yet is freed."""
        if number is None and lease.attempt == 1:
            gone = session.execute(delete(TrialRow).where(self._held(lease)))
            if _count(gone):
                self._count_study(session, slots=-1, payable=-1)
        else:
            session.execute(
                _update(TrialRow)
                .where(self._held(lease))
                .values(expires_at=0.0, attempt=lease.attempt - 1, worker=None, number=number)
            )

    # One fingerprint, one evaluation.
    @transactional
    def claim(
        self,
        session: Session,
        lease: Lease,
        number: int,
        fingerprint: str,
        level: str,
        told: Collection[int] = (),
    ) -> Answer:
        """Ask for the right to evaluate a fingerprint.

        Raises:
            LeaseLostError: the trial was taken over.
        """
        self._mark_told(session, told)
        known = self._evaluation(session, lease, number, fingerprint)
        changes: dict[str, Any] = {
            "number": number,
            "fingerprint": fingerprint,
            "level": level,
            "evaluation": known.id,
            "expires_at": now() + self.lease_seconds,
        }
        if known.owner == lease.id:
            self._change(session, lease, phase=Phase.TRAINING, **changes)
            return Claimed(replace(lease, number=number))
        if known.state is EvaluationState.RUNNING:
            changes |= {"expires_at": None}
            self._change(session, lease, phase=Phase.PARKED, **changes)
            return Parked(lease.id)
        self._change(session, lease, **changes)
        return Hit(self._settle_reused(session, lease.id, known))

    @transactional
    def settle(
        self,
        session: Session,
        lease: Lease,
        number: int,
        outcome: Outcome,
        seconds: float,
        reports: Sequence[Report] = (),
        told: Collection[int] = (),
        next_for: Worker | None = None,
    ) -> Settlement:
        """End a trial, and with it those parked on its fingerprint; take the next slot if asked.

        A failure is not shared: the oldest parked trial becomes the owner instead.

        Raises:
            LeaseLostError: the trial was taken over; nothing is changed.
        """
        self._change(session, lease, number=number, seconds=seconds, **_outcome_columns(outcome))
        self._add_reports(session, lease, reports)
        self._mark_told(session, told)
        row = session.get_one(TrialRow, lease.id)
        settled = [_settled(row)]
        if row.evaluation is not None:
            settled += self._end_evaluation(session, row)
            self._count_study(session, repeats=None)
        if outcome.state is State.FAILED:
            self._stop_on_one_cause(session)
        return Settlement(tuple(settled), self._reserve(session, next_for) if next_for else None)

    # Telling.
    @reading
    def untold(self, session: Session, older_than: float = 0.0) -> list[Settled]:
        """Trials that ended at least so many seconds ago and were not yet told to Optuna."""
        rows = session.scalars(
            select(TrialRow)
            .where(
                TrialRow.study == self.study,
                TrialRow.told.is_(False),
                TrialRow.phase == Phase.SETTLED,
                TrialRow.settled_at <= now() - older_than,
            )
            .order_by(TrialRow.id)
        )
        return [_settled(row) for row in rows]

    @transactional
    def mark_told(self, session: Session, told: Collection[int]) -> None:
        """Remember that Optuna knows how these trials ended."""
        if told:
            self._mark_told(session, told)

    # Workers.
    @transactional
    def enter(self, session: Session, worker: Worker) -> None:
        """Say that a worker is at this study; again and again, or it counts as gone."""
        row = session.get(WorkerRow, worker.id)
        if row is None:
            row = WorkerRow(id=worker.id, study=self.study, device=worker.device)
            session.add(row)
        row.expires_at = now() + self.lease_seconds

    @transactional
    def leave(self, session: Session, worker: Worker) -> None:
        """Say that a worker has left."""
        session.execute(
            delete(WorkerRow).where(
                WorkerRow.study == self.study,
                or_(WorkerRow.id == worker.id, WorkerRow.expires_at <= now()),
            )
        )

    @reading
    def holders(self, session: Session) -> set[str]:
        """The workers that hold a trial now."""
        return set(
            session.scalars(
                select(TrialRow.worker)
                .where(
                    TrialRow.study == self.study,
                    TrialRow.phase.in_(_OPEN),
                    TrialRow.worker.is_not(None),
                )
                .distinct()
            )
        )

    @reading
    def number_of(self, session: Session, id: int) -> int | None:
        """The number of a trial in Optuna, once its holder has claimed or settled it."""
        return session.scalar(select(TrialRow.number).where(TrialRow.id == id))

    @reading
    def open_trials(self, session: Session) -> int:
        """How many trials have not ended yet."""
        return (
            session.scalar(
                select(func.count()).where(
                    TrialRow.study == self.study, TrialRow.phase != Phase.SETTLED
                )
            )
            or 0
        )

    @reading
    def still_parked(self, session: Session, ids: Collection[int]) -> set[int]:
        """Those of the given trials that still wait for another's result."""
        waiting = and_(TrialRow.id.in_(ids), TrialRow.phase == Phase.PARKED)
        return set(session.scalars(select(TrialRow.id).where(waiting)))

    # Inside a transaction.
    def _mine(self) -> ColumnElement[bool]:
        return StudyRow.uuid == self.study

    def _held(self, lease: Lease) -> ColumnElement[bool]:
        return and_(
            TrialRow.id == lease.id, TrialRow.token == lease.token, TrialRow.phase.in_(_OPEN)
        )

    def _change(self, session: Session, lease: Lease, **changes: Any) -> None:
        changed = session.execute(_update(TrialRow).where(self._held(lease)).values(**changes))
        if not _count(changed):
            raise LeaseLostError(f"trial {lease.number} was taken over by another worker")

    def _reserve(self, session: Session, worker: Worker) -> Lease | None:
        free = and_(
            self._mine(),
            StudyRow.stopped.is_(None),
            or_(StudyRow.trials_limit.is_(None), StudyRow.slots < StudyRow.trials_limit),
            or_(
                StudyRow.evaluations_limit.is_(None),
                StudyRow.payable < StudyRow.evaluations_limit,
            ),
            or_(StudyRow.deadline.is_(None), StudyRow.deadline > now()),
        )
        taken = _update(StudyRow).where(free)
        if not _count(
            session.execute(taken.values(slots=StudyRow.slots + 1, payable=StudyRow.payable + 1))
        ):
            return None
        row = TrialRow(
            study=self.study,
            phase=Phase.PROPOSING,
            token=1,
            attempt=1,
            worker=worker.id,
            device=worker.device,
            told=False,
            started_at=now(),
            expires_at=now() + self.lease_seconds,
        )
        session.add(row)
        session.flush()
        return Lease(row.id, 1, 1)

    def _evaluation(
        self, session: Session, lease: Lease, number: int, fingerprint: str
    ) -> EvaluationRow:
        """The row of a fingerprint, locked; made, or taken from a failed owner, where free."""
        replicate = 0 if self.share else lease.id
        while True:
            row = session.scalars(
                select(EvaluationRow)
                .where(
                    EvaluationRow.study == self.study,
                    EvaluationRow.fingerprint == fingerprint,
                    EvaluationRow.replicate == replicate,
                )
                .with_for_update()
            ).first()
            if row is None:
                row = EvaluationRow(
                    study=self.study,
                    fingerprint=fingerprint,
                    replicate=replicate,
                    owner=lease.id,
                    number=number,
                    state=EvaluationState.RUNNING,
                )
                try:
                    with session.begin_nested():
                        session.add(row)
                except IntegrityError:
                    continue
            elif row.state is EvaluationState.FAILED:
                row.owner, row.number, row.state = lease.id, number, EvaluationState.RUNNING
            return row

    def _end_evaluation(self, session: Session, owner: TrialRow) -> list[Settled]:
        """Write an owner's result to its evaluation and settle the trials parked on it."""
        row = session.scalars(
            select(EvaluationRow).where(EvaluationRow.id == owner.evaluation).with_for_update()
        ).one()
        if row.owner != owner.id or owner.state is None:
            return []
        row.state = EvaluationState(owner.state.value)
        row.objectives, row.metrics, row.step = owner.objectives, owner.metrics, owner.step
        row.closed, row.seconds, row.number = owner.closed, owner.seconds, owner.number
        parked = session.scalars(
            select(TrialRow)
            .where(TrialRow.evaluation == row.id, TrialRow.phase == Phase.PARKED)
            .order_by(TrialRow.id)
        ).all()
        if owner.state is State.FAILED:
            if parked:
                self._promote(parked[0], row)
            return []
        session.flush()
        return [self._settle_reused(session, waiting.id, row) for waiting in parked]

    def _promote(self, waiting: TrialRow, row: EvaluationRow) -> None:
        """Make a parked trial the owner; its lease has expired, so any worker takes it up."""
        row.owner, row.number, row.state = waiting.id, waiting.number, EvaluationState.RUNNING
        waiting.phase, waiting.worker = Phase.TRAINING, None
        waiting.attempt, waiting.expires_at = 0, 0.0

    def _settle_reused(self, session: Session, id: int, known: EvaluationRow) -> Settled:
        """End a trial with the result of the one that owns its fingerprint."""
        row = session.get_one(TrialRow, id, populate_existing=True)
        row.phase, row.state = Phase.SETTLED, State(known.state.value)
        row.objectives, row.metrics, row.step = known.objectives, known.metrics, known.step
        row.closed, row.reused_from = known.closed, known.number
        row.settled_at, row.seconds = now(), 0.0
        session.flush()
        self._count_study(session, payable=-1, repeats=1)
        self._stop_if_exhausted(session)
        return _settled(row)

    def _count_study(
        self, session: Session, slots: int = 0, payable: int = 0, repeats: int | None = 0
    ) -> None:
        """Add to a study's counts; `repeats=None` starts its count of known ones anew."""
        statement = _update(StudyRow).where(self._mine())
        if repeats is None:
            session.execute(statement.where(StudyRow.repeats > 0).values(repeats=0))
            return
        session.execute(
            statement.values(
                slots=StudyRow.slots + slots,
                payable=StudyRow.payable + payable,
                repeats=StudyRow.repeats + repeats,
            )
        )

    def _stop_if_exhausted(self, session: Session) -> None:
        message = (
            f"the last {self.exhausted_after} candidates were all known: the space is exhausted, "
            "or the strategy no longer leaves what it has found"
        )
        session.execute(
            _update(StudyRow)
            .where(
                self._mine(),
                StudyRow.repeats >= self.exhausted_after,
                StudyRow.stopped.is_(None),
            )
            .values(stopped=StopReason.EXHAUSTED, stopped_because=message)
        )

    def _stop_on_one_cause(self, session: Session) -> None:
        first = session.execute(
            select(TrialRow.state, TrialRow.cause, TrialRow.message)
            .where(TrialRow.study == self.study, TrialRow.phase == Phase.SETTLED)
            .order_by(TrialRow.settled_at, TrialRow.id)
            .limit(self.same_failures + 1)
        ).all()
        causes = {(state, cause) for state, cause, _ in first}
        if len(first) == self.same_failures and len(causes) == 1:
            session.execute(
                _update(StudyRow)
                .where(self._mine())
                .values(
                    stopped=StopReason.SAME_FAILURE,
                    stopped_because=f"the first {len(first)} trials failed alike: {first[0][2]}",
                )
            )

    def _add_reports(self, session: Session, lease: Lease, reports: Sequence[Report]) -> None:
        session.add_all(
            ReportRow(
                trial=lease.id,
                attempt=lease.attempt,
                step=report.step,
                metrics=_finite(report.metrics),
            )
            for report in reports
        )

    def _mark_told(self, session: Session, told: Collection[int]) -> None:
        if told:
            session.execute(_update(TrialRow).where(TrialRow.id.in_(told)).values(told=True))


def _update(table: type[Base]) -> Update:
    """An update that leaves loaded rows alone: they are read after it, or not at all."""
    return update(table).execution_options(synchronize_session=False)


def _outcome_columns(outcome: Outcome) -> dict[str, Any]:
    return {
        "phase": Phase.SETTLED,
        "state": outcome.state,
        "objectives": None if outcome.values is None else list(outcome.values),
        "metrics": _finite(outcome.metrics),
        "step": outcome.step,
        "closed": None if outcome.closed is None else dict(outcome.closed),
        "reason": outcome.reason,
        "message": outcome.message,
        "traceback": outcome.traceback,
        "cause": outcome.cause,
        "settled_at": now(),
    }


def _settled(row: TrialRow) -> Settled:
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
        token=row.token,
    )


def _finite(metrics: Any) -> dict[str, float | None]:
    """Metrics as JSON can hold them: NaN and infinity become null."""
    return {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}


def _count(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
