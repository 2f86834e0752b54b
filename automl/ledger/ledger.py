"""The ledger: who holds which trial, what each fingerprint gave, and how each trial ended.

Every method is one transaction. A worker holds a trial by a lease with a fencing token; settling
is one compare-and-set on that token, so that of two workers with one trial only one can end it.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, Engine, Update, and_, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from automl.identity.fingerprint import Identity
from automl.ledger import budget, evaluations, functions, queue
from automl.ledger.catalogue import Functions
from automl.ledger.clock import now
from automl.ledger.dialects import changed, insert_row, table, update_table
from automl.ledger.evaluations import Owned, Request, Served, Terms
from automl.ledger.functions import Resolved
from automl.ledger.models import (
    EvaluationRow,
    Phase,
    ReportRow,
    StopReason,
    StudyRow,
    TrialRow,
    WorkerRow,
)
from automl.ledger.transaction import again, reading, transactional, transactional_once
from automl.ledger.values import (
    Answer,
    Claimed,
    Hit,
    Lease,
    LeaseLostError,
    Left,
    Parked,
    Settled,
    Settlement,
    TimeLeft,
    Worker,
    result_columns,
    settled_of,
)
from automl.plugin.report import Outcome, Report, State, finite
from automl.spec import Cache

LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Ledger:
    """The ledger of one study.

    cache: how results are shared. objectives: the metrics that a result needs to be served.
    same_failures: this many first trials that fail for one cause stop the study.
    """

    engine: Engine
    study: str
    cache: Cache = field(default_factory=Cache)
    objectives: tuple[str, ...] = ()
    lease_seconds: float = LEASE_SECONDS
    same_failures: int = 3

    @cached_property
    def functions(self) -> Functions:
        """The functions that the database knows."""
        return Functions(self.engine, self.study, self.cache)

    # Budget.
    @transactional_once
    def open_study(
        self,
        session: Session,
        trials: int | None,
        evaluations: int | None,
        timeout: float | None,
        device_seconds: float | None = None,
    ) -> None:
        """Enter a new study with its budget."""
        session.add(
            StudyRow(
                uuid=self.study,
                trials_limit=trials,
                evaluations_limit=evaluations,
                deadline=None if timeout is None else now() + timeout,
                device_seconds_limit=device_seconds,
                created_at=now(),
            )
        )

    @transactional_once
    def extend(
        self,
        session: Session,
        trials: int | None,
        evaluations: int | None,
        timeout: float | None,
        device_seconds: float | None = None,
        enqueue: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Allow so many trials, evaluations or device seconds more, and lift an early stop.

        enqueue: decisions to queue, as `enqueue` does; where they do not fit, nothing changes.
        timeout: a new deadline. The old one falls where another limit is given; where none is,
        it may be the only thing that ends the study, and stays.

        Raises:
            UsageError: the limits would be more than databases hold, or too many are queued.
        """
        changes: dict[str, Any] = {"stopped": None, "stopped_because": None, "repeats": 0}
        if timeout is not None:
            changes["deadline"] = now() + timeout
        elif any(more is not None for more in (trials, evaluations, device_seconds)):
            changes["deadline"] = None
        if device_seconds is not None:
            spent = func.coalesce(StudyRow.device_seconds_limit, StudyRow.device_seconds)
            changes["device_seconds_limit"] = spent + device_seconds
        changes |= budget.raised(session, self.study, trials, evaluations)
        session.execute(update_table(StudyRow).where(self._mine()).values(changes))
        queue.enqueue(session, self.study, enqueue)

    @transactional_once
    def enqueue(self, session: Session, decisions: Sequence[Mapping[str, Any]]) -> None:
        """Queue trials with these decisions; workers take them up before they propose others.

        What a trial is not given, the strategy draws. Each takes a slot of the budget now.

        Raises:
            UsageError: not so many slots are left; none is entered.
        """
        queue.enqueue(session, self.study, decisions)

    @transactional
    def buy_time(self, session: Session, lease: Lease) -> float:
        """Take device time from the budget for a trial under way; returns the seconds, 0 if none.

        Raises:
            LeaseLostError: the trial was taken over.
        """
        bought = budget.buy_seconds(session, self.study)
        self._change(session, lease, device_seconds=TrialRow.device_seconds + bought)
        return bought

    @reading
    def time_left(self, session: Session) -> TimeLeft:
        """How long trials may go on, and whether they have to buy device time."""
        row = session.execute(
            select(StudyRow.deadline - now(), StudyRow.device_seconds_limit).where(self._mine())
        ).one()
        return TimeLeft(seconds=row[0], metered=row[1] is not None)

    @reading
    def is_over(self, session: Session) -> bool:
        """Whether no trial may train any more; those under way wait for more budget."""
        return budget.is_over(session, self.study)

    @reading
    def has_study(self, session: Session) -> bool:
        """Whether the study was entered here."""
        return session.scalar(select(StudyRow.uuid).where(self._mine())) is not None

    # Leases.
    @transactional
    def reserve(self, session: Session, worker: Worker, told: Collection[int] = ()) -> Lease | None:
        """Take a trial that waits, else a slot of the budget; None where there is neither."""
        self._mark_told(session, told)
        if again(session) and (taken := self._taken_unheard(session, worker)):
            return taken
        return self._reserve(session, worker)

    @transactional
    def take_over(
        self, session: Session, worker: Worker, dead: Collection[str] = ()
    ) -> Lease | None:
        """Take the oldest trial whose lease has expired, or whose holder is known to be dead."""
        if again(session) and (taken := self._taken_unheard(session, worker)):
            return taken
        return self._take(session, worker, queue.free(self.study, dead))

    @reading
    def has_work(self, session: Session, dead: Collection[str] = (), slots: bool = True) -> bool:
        """Whether a trial could be taken over, or a slot taken; nothing is locked or changed."""
        left = select(TrialRow.id).where(queue.free(self.study, dead)).limit(1)
        if session.scalar(left) is not None:
            return True
        return slots and budget.has_slot(session, self.study)

    @transactional
    def renew(
        self,
        session: Session,
        lease: Lease,
        reports: Sequence[Report] = (),
        checkpoint: str | None = None,
    ) -> None:
        """Hold on to a trial and store what it reported meanwhile.

        checkpoint: the SHA-256 of what it can go on from now.

        Raises:
            LeaseLostError: it was taken over.
        """
        changes: dict[str, Any] = {} if checkpoint is None else {"checkpoint": checkpoint}
        self._change(session, lease, expires_at=now() + self.lease_seconds, **changes)
        self._add_reports(session, lease, reports)

    @transactional
    def give_back(
        self,
        session: Session,
        lease: Lease,
        number: int | None,
        seconds: float = 0.0,
        counts: bool = False,
        metered: bool = False,
    ) -> None:
        """Let any worker go on with this trial at once; a slot with no trial yet is freed.

        seconds: how long this attempt trained. counts: the attempt counts to those that a trial
        has, since it is the trial that may have ended it. metered: it bought its time.
        """
        unbegun = (
            *(TrialRow.number.is_(None), TrialRow.attempt == 1, TrialRow.given.is_(None)),
            TrialRow.device_seconds == 0,
        )
        if number is None and changed(
            session, delete(table(TrialRow)).where(self._held(lease), *unbegun)
        ):
            budget.count(session, self.study, slots=-1, payable=-1)
        else:
            # With the token goes whatever the holder's heartbeat may still have under way.
            freed: dict[str, Any] = {
                "expires_at": queue.AT_ONCE,
                "worker": None,
                "token": lease.token + 1,
                "attempt": lease.attempt - (not counts),
                "device_seconds": lease.device_seconds + seconds,
            }
            freed |= {} if number is None else {"number": number}
            owed = self._owed(session, lease, seconds, metered)
            if changed(session, update_table(TrialRow).where(self._held(lease)).values(freed)):
                budget.charge(session, self.study, owed)

    # One function, one evaluation.
    @transactional
    def claim(
        self,
        session: Session,
        lease: Lease,
        number: int,
        identity: Identity,
        costs: Mapping[str, float],
        told: Collection[int] = (),
    ) -> Answer:
        """Ask for the right to evaluate what a candidate computes.

        costs: the candidate's own, which are never served to another.

        Raises:
            LeaseLostError: the trial was taken over.
        """
        self._mark_told(session, told)
        if again(session) and (answer := self._answered_unheard(session, lease)):
            return answer
        function = self._function(session, identity)
        request = Request(lease, number, function, _finite_costs(costs))
        standing = evaluations.ask(session, self._terms, request)
        changes: dict[str, Any] = {
            "number": number,
            "fingerprint": function.fingerprint,
            "level": function.stored_level.value,
            "evaluation": standing.evaluation,
            "identification": function.to_json(),
            "costs": request.costs,
            "expires_at": now() + self.lease_seconds,
        }
        if isinstance(standing, Owned):
            changes |= {"phase": Phase.TRAINING, "audits": standing.audits}
            self._turn(session, lease, number, standing.evaluation, changes)
            return Claimed(_claimed(request, standing))
        if isinstance(standing, Served):
            self._turn(session, lease, number, standing.evaluation, changes)
            return Hit(evaluations.settle_served(session, self._terms, lease.id, standing))
        changes |= {"phase": Phase.PARKED, "expires_at": None}
        self._turn(session, lease, number, standing.evaluation, changes)
        return Parked(lease.id)

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
        judge: Mapping[str, Any] | None = None,
        identity: Identity | None = None,
        metered: bool = False,
    ) -> Settlement:
        """End a trial, and with it those parked on its function; take the next slot if asked.

        A failure is not shared: the oldest parked trial becomes the owner instead.
        judge: decisions to train again, in a trial of their own that any worker takes up.
        identity: of a candidate that nobody claimed, to count how it was recognised.
        metered: it bought its device time.

        Raises:
            LeaseLostError: the trial was taken over; nothing is changed.
        """
        if again(session) and (done := self._settled_unheard(session, lease, next_for)):
            return done
        columns = _outcome_columns(outcome)
        if identity is not None:
            columns["identification"] = functions.unshared(identity, self.cache).to_json()
        owed = self._owed(session, lease, seconds, metered)
        total = lease.device_seconds + seconds
        columns |= {"number": number, "seconds": seconds, "device_seconds": total}
        lease = self._end_as_it_stands(session, lease, columns)
        self._add_reports(session, lease, reports)
        self._mark_told(session, told)
        names = (lease.fingerprint, lease.level, None, lease.attempt, seconds)
        settled = [Settled(lease.id, number, outcome, *names, judges=lease.judges)]
        paid = lease.evaluation is not None
        fresh = paid and not lease.repeats_known
        settled += self._end_evaluation(session, lease, lease.evaluation, number, outcome, seconds)
        if outcome.state is State.FAILED:
            budget.stop_on_one_cause(session, self.study, self.same_failures)
        if judge is not None:
            self._add_judging_trial(session, number, judge)
        if not fresh:
            # What was not trained is not paid for; too many of these, or of known ones, end a
            # study, too.
            budget.count(session, self.study, payable=0 if paid else -1, repeats=1)
            budget.stop_if_exhausted(session, self.study, self.cache.exhausted_after)
        more = self._reserve(session, next_for, fresh, owed) if next_for else None
        if next_for is None:
            budget.charge(session, self.study, owed)
            if fresh:
                budget.count(session, self.study, repeats=None)
        return Settlement(tuple(settled), more)

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
        return [settled_of(row) for row in rows]

    @transactional
    def mark_told(self, session: Session, told: Collection[int]) -> None:
        """Remember that Optuna knows how these trials ended."""
        if told:
            self._mark_told(session, told)

    @transactional
    def stop_exhausted(self, session: Session, message: str) -> None:
        """End the study, for its strategy has nothing left to propose."""
        budget.stop(session, self.study, StopReason.EXHAUSTED, message)

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
    def left_by(self, session: Session, mark: str) -> Left | None:
        """What the worker of this mark left; None where it has signed off, or never came."""
        mine = and_(WorkerRow.study == self.study, WorkerRow.id.endswith(f":{mark}"))
        worker = session.scalar(select(WorkerRow.id).where(mine))
        if worker is None:
            return None
        held = and_(TrialRow.worker == worker, TrialRow.phase.in_(queue.OPEN))
        here = select(TrialRow.number).where(TrialRow.study == self.study, held)
        return Left(session.scalar(here.limit(1)))

    @reading
    def holders(self, session: Session) -> set[str]:
        """The workers that hold a trial now."""
        return set(
            session.scalars(
                select(TrialRow.worker)
                .where(
                    TrialRow.study == self.study,
                    TrialRow.phase.in_(queue.OPEN),
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
    def unnumbered(self, session: Session) -> set[int]:
        """The ids of open trials whose number in Optuna is not known yet."""
        waiting = (TrialRow.number.is_(None), TrialRow.phase != Phase.SETTLED)
        return set(
            session.scalars(select(TrialRow.id).where(TrialRow.study == self.study, *waiting))
        )

    @reading
    def open_trials(self, session: Session) -> int:
        """How many trials have to end before the study has."""
        return session.scalar(select(func.count()).where(queue.unended(self.study))) or 0

    @reading
    def still_parked(self, session: Session, ids: Collection[int]) -> set[int]:
        """Those of the given trials that still wait for another's result."""
        waiting = and_(TrialRow.id.in_(ids), TrialRow.phase == Phase.PARKED)
        return set(session.scalars(select(TrialRow.id).where(waiting)))

    # What a transaction did whose answer was lost.
    def _taken_unheard(self, session: Session, worker: Worker) -> Lease | None:
        """The trial that a worker without one has taken unheard, if it has."""
        # First the row that all who take a slot change: the lost transaction may be ending now.
        session.execute(select(StudyRow.uuid).where(self._mine()).with_for_update())
        row = session.scalars(
            select(TrialRow)
            .where(
                TrialRow.study == self.study,
                TrialRow.phase.in_(queue.OPEN),
                TrialRow.worker == worker.id,
            )
            .order_by(TrialRow.id.desc())
            .limit(1)
            .with_for_update()
        ).first()
        return None if row is None else _lease_of(row)

    def _answered_unheard(self, session: Session, lease: Lease) -> Answer | None:
        """How a claim ended that need not be made again; one that gave the evaluation may be."""
        row = self._own_row(session, lease)
        if row is None:
            return None
        if row.phase is Phase.SETTLED:
            return Hit(settled_of(row))
        return Parked(row.id) if row.phase is Phase.PARKED else None

    def _settled_unheard(
        self, session: Session, lease: Lease, next_for: Worker | None
    ) -> Settlement | None:
        row = self._own_row(session, lease)
        if row is None or row.phase is not Phase.SETTLED:
            return None
        settled = [settled_of(row)]
        if row.evaluation is not None:
            with_it = (TrialRow.evaluation == row.evaluation, TrialRow.id != lease.id)
            untold = (TrialRow.phase == Phase.SETTLED, TrialRow.told.is_(False))
            others = select(TrialRow).where(*with_it, *untold).order_by(TrialRow.id)
            settled += [settled_of(other) for other in session.scalars(others)]
        more = self._taken_unheard(session, next_for) if next_for else None
        return Settlement(tuple(settled), more)

    def _own_row(self, session: Session, lease: Lease) -> TrialRow | None:
        """The row of a lease, unless another worker has it by now."""
        own = (TrialRow.id == lease.id, TrialRow.token == lease.token)
        return session.scalars(select(TrialRow).where(*own).with_for_update()).first()

    # Inside a transaction.
    def _mine(self) -> ColumnElement[bool]:
        return StudyRow.uuid == self.study

    def _held(self, lease: Lease) -> ColumnElement[bool]:
        return and_(
            TrialRow.id == lease.id, TrialRow.token == lease.token, TrialRow.phase.in_(queue.OPEN)
        )

    def _change(self, session: Session, lease: Lease, **changes: Any) -> None:
        if not changed(session, update_table(TrialRow).where(self._held(lease)).values(changes)):
            raise LeaseLostError(f"trial {lease.number} was taken over by another worker")

    def _owed(self, session: Session, lease: Lease, seconds: float, metered: bool) -> float:
        """What is still to charge for an attempt of so many seconds; below 0 for what it bought."""
        if not metered:
            return seconds
        charged = session.scalar(select(TrialRow.device_seconds).where(TrialRow.id == lease.id))
        return lease.device_seconds + seconds - (charged or 0.0)

    def _take(self, session: Session, worker: Worker, which: ColumnElement[bool]) -> Lease | None:
        row = queue.take(session, which)
        if row is None:
            return None
        row.token += 1
        row.attempt += 1
        row.worker, row.device = worker.id, worker.device
        row.expires_at = now() + self.lease_seconds
        return _lease_of(row)

    def _reserve(
        self,
        session: Session,
        worker: Worker,
        paid_before: bool = False,
        seconds: float = 0.0,
    ) -> Lease | None:
        waited = self._take(session, worker, queue.at_once(self.study))
        if waited is not None:
            if paid_before:
                budget.count(session, self.study, repeats=None)
            if seconds:
                budget.charge(session, self.study, seconds)
            return waited
        if not budget.take_slot(session, self.study, paid_before, seconds):
            return None
        # SQLite gives the id of a slot that was freed to the next, which its former holder, if it
        # is late, must not hold.
        row: dict[str, Any] = {
            "study": self.study,
            "phase": Phase.PROPOSING,
            "token": 2 + secrets.randbelow(2**30),
            "attempt": 1,
            "worker": worker.id,
            "device": worker.device,
            "told": False,
            "started_at": now(),
            "expires_at": now() + self.lease_seconds,
        }
        return Lease(insert_row(session, TrialRow, row), row["token"], attempt=1)

    def _add_judging_trial(self, session: Session, judges: int, given: Mapping[str, Any]) -> None:
        """Enter a trial with given decisions, for any worker to take."""
        if not budget.take_payment(session, self.study):
            return
        row = {
            "study": self.study,
            "phase": Phase.PROPOSING,
            "token": 1,
            "attempt": 0,
            "told": False,
            "started_at": now(),
            "expires_at": queue.AT_ONCE,
            "given": dict(given),
            "judges": judges,
        }
        insert_row(session, TrialRow, row)

    @property
    def _terms(self) -> Terms:
        return Terms(self.study, self.cache, self.objectives)

    def _function(self, session: Session, identity: Identity) -> Resolved:
        if not self.cache.enabled:
            return functions.unshared(identity, self.cache)
        return functions.resolve(session, identity, self.cache)

    def _turn(
        self,
        session: Session,
        lease: Lease,
        number: int,
        evaluation: int,
        changes: Mapping[str, Any],
    ) -> None:
        """Turn a trial to an evaluation, and end the one that its row says it had before, if any.

        The space may have made something else of the same decisions; trials that wait for the
        first must not wait for ever.
        """
        if changed(session, self._update_with(lease, (None, evaluation)).values(changes)):
            return
        own = (TrialRow.id == lease.id, TrialRow.token == lease.token)
        before = session.scalar(select(TrialRow.evaluation).where(*own))
        self._end_evaluation(session, lease, before, number, Outcome(State.FAILED), 0.0)
        self._change(session, lease, **changes)

    def _end_as_it_stands(
        self, session: Session, lease: Lease, columns: Mapping[str, Any]
    ) -> Lease:
        """Write a trial's end; returns the lease as its row has it.

        A claim may have gone through that its holder never heard of.
        """
        if changed(session, self._update_with(lease, (lease.evaluation,)).values(columns)):
            return lease
        self._change(session, lease, **columns)
        row = session.get_one(TrialRow, lease.id, populate_existing=True)
        known = select(EvaluationRow.served).where(EvaluationRow.id == row.evaluation)
        return replace(_lease_of(row), repeats_known=session.scalar(known) is not None)

    def _update_with(self, lease: Lease, evaluations: Collection[int | None]) -> Update:
        """An update of a trial that is held, if its row has one of these evaluations."""
        either = or_(*(TrialRow.evaluation.is_not_distinct_from(one) for one in evaluations))
        return update_table(TrialRow).where(self._held(lease), either)

    def _end_evaluation(
        self,
        session: Session,
        lease: Lease,
        evaluation: int | None,
        number: int,
        outcome: Outcome,
        seconds: float,
    ) -> list[Settled]:
        """Write the owner's result to its evaluation and let the trials parked on it go on."""
        if evaluation is None:
            return []
        parked = evaluations.end(session, evaluation, lease.id, number, outcome, seconds)
        return evaluations.release(session, self._terms, evaluation, parked) if parked else []

    def _add_reports(self, session: Session, lease: Lease, reports: Sequence[Report]) -> None:
        rows = [
            {
                "trial": lease.id,
                "attempt": lease.attempt,
                "step": report.step,
                "metrics": finite(report.metrics),
            }
            for report in reports
        ]
        if rows and again(session):
            columns = table(ReportRow).c
            own = (columns.trial == lease.id, columns.attempt == lease.attempt)
            known = set(session.scalars(select(columns.step).where(*own)))
            rows = [row for row in rows if row["step"] not in known]
        if rows:
            session.execute(insert(table(ReportRow)), rows)

    def _mark_told(self, session: Session, told: Collection[int]) -> None:
        if told:
            session.execute(update_table(TrialRow).where(TrialRow.id.in_(told)).values(told=True))


def _lease_of(row: TrialRow) -> Lease:
    names = (row.number, row.evaluation, row.fingerprint, row.level, row.given, row.judges)
    return Lease(
        row.id,
        row.token,
        row.attempt,
        *names,
        repeats_known=row.audits,
        device_seconds=row.device_seconds,
        checkpoint=row.checkpoint,
    )


def _finite_costs(costs: Mapping[str, float]) -> dict[str, float]:
    """The costs that are numbers at all, as JSON can hold them."""
    return {name: value for name, value in finite(costs).items() if value is not None}


def _claimed(request: Request, owned: Owned) -> Lease:
    lease, function = request.lease, request.function
    return replace(
        lease,
        number=request.number,
        evaluation=owned.evaluation,
        fingerprint=function.fingerprint,
        level=function.stored_level.value,
        repeats_known=owned.known,
    )


def _outcome_columns(outcome: Outcome) -> dict[str, Any]:
    return {
        **result_columns(outcome),
        "phase": Phase.SETTLED,
        "state": outcome.state,
        "reason": outcome.reason,
        "message": outcome.message,
        "traceback": outcome.traceback,
        "cause": outcome.cause,
        "settled_at": now(),
    }
