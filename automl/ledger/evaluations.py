"""One evaluation per fingerprint: who owns it, who waits for it, and how it is shared."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from automl.ledger.budget import count, stop_if_exhausted
from automl.ledger.clock import now
from automl.ledger.models import EvaluationRow, EvaluationState, Phase, TrialRow
from automl.ledger.statements import changed, insert_if_absent, table, update_table
from automl.ledger.values import Lease, Settled, result_columns, settled_of
from automl.report import Outcome, State


@dataclass(frozen=True)
class Known:
    """What is known of a fingerprint: whose it is, and whether it has ended."""

    id: int
    owner: int
    state: EvaluationState


def find_or_own(
    session: Session, study: str, lease: Lease, fingerprint: str, number: int, replicate: int
) -> Known:
    """The evaluation of a fingerprint, locked; made ours, or taken from a failed owner."""
    key = {"study": study, "fingerprint": fingerprint, "replicate": replicate}
    mine = {"owner": lease.id, "number": number, "state": EvaluationState.RUNNING}
    made = insert_if_absent(session, EvaluationRow, {**key, **mine})
    if made is not None:
        return Known(made, lease.id, EvaluationState.RUNNING)
    columns = table(EvaluationRow).c
    found = Known(
        *session.execute(
            select(columns.id, columns.owner, columns.state)
            .where(*(columns[name] == value for name, value in key.items()))
            .with_for_update()
        ).one()
    )
    if found.state is EvaluationState.FAILED:
        _own(session, found.id, mine)
        return Known(found.id, lease.id, EvaluationState.RUNNING)
    return found


def end(
    session: Session, study: str, lease: Lease, number: int, outcome: Outcome, seconds: float
) -> tuple[list[int], bool]:
    """Write an owner's result; returns the parked trials, oldest first, and if it was ours."""
    result = {**result_columns(outcome), "number": number, "seconds": seconds}
    ours = changed(
        session,
        update_table(EvaluationRow)
        .where(EvaluationRow.id == lease.evaluation, EvaluationRow.owner == lease.id)
        .values(state=EvaluationState(outcome.state.value), **result),
    )
    if not ours:
        return [], False
    waiting = (TrialRow.evaluation == lease.evaluation, TrialRow.phase == Phase.PARKED)
    return list(session.scalars(select(TrialRow.id).where(*waiting).order_by(TrialRow.id))), True


def promote(session: Session, evaluation: int, waiting: int) -> None:
    """Make a parked trial the owner; its lease has expired, so any worker takes it up."""
    row = session.get_one(TrialRow, waiting)
    row.phase, row.worker = Phase.TRAINING, None
    row.attempt, row.expires_at = 0, 0.0
    session.flush()
    mine = {"owner": row.id, "number": row.number, "state": EvaluationState.RUNNING}
    _own(session, evaluation, mine)


def settle_reused(
    session: Session, study: str, waiting: int, evaluation: int, exhausted_after: int
) -> Settled:
    """End a trial with what its fingerprint gave; nothing was paid for it."""
    row = session.get_one(TrialRow, waiting, populate_existing=True)
    known = session.get_one(EvaluationRow, evaluation, populate_existing=True)
    row.phase, row.state = Phase.SETTLED, State(known.state.value)
    row.objectives, row.metrics, row.step = known.objectives, known.metrics, known.step
    row.closed, row.reused_from = known.closed, known.number
    row.settled_at, row.seconds = now(), 0.0
    session.flush()
    count(session, study, payable=-1, repeats=1)
    stop_if_exhausted(session, study, exhausted_after)
    return settled_of(row)


def _own(session: Session, evaluation: int, mine: dict[str, Any]) -> None:
    statement = update_table(EvaluationRow).where(EvaluationRow.id == evaluation)
    session.execute(statement.values(mine))
