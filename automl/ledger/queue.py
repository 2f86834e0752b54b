"""Trials that wait for a worker: queued with given decisions, given back, or to be judged."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, insert, or_, select
from sqlalchemy.orm import Session

from automl.ledger import budget
from automl.ledger.clock import now
from automl.ledger.dialects import table
from automl.ledger.models import Phase, TrialRow

OPEN = (Phase.PROPOSING, Phase.TRAINING)
AT_ONCE = 0.0
"""The end of a lease that nobody has: whoever looks next takes the trial."""


def enqueue(session: Session, study: str, decisions: Sequence[Mapping[str, Any]]) -> None:
    """Enter trials with given decisions, each in a slot of the budget; all of them or none.

    Raises:
        UsageError: there are not so many slots.
    """
    if not decisions:
        return
    budget.take_slots(session, study, len(decisions))
    row = {"study": study, "phase": Phase.PROPOSING, "token": 1, "attempt": 0, "told": False}
    entry = insert(table(TrialRow)).values(**row, started_at=now(), expires_at=AT_ONCE)
    session.execute(entry, [{"given": dict(given)} for given in decisions])


def unended(study: str) -> ColumnElement[bool]:
    """The trials that have to end before their study has.

    Queued ones that never began do not begin once it has been stopped, or its time is up: they
    wait for a resume.
    """
    begun = or_(TrialRow.attempt > 0, TrialRow.number.is_not(None), TrialRow.judges.is_not(None))
    here = and_(TrialRow.study == study, TrialRow.phase != Phase.SETTLED)
    return and_(here, or_(begun, budget.goes_on(study)))


def free(study: str, dead: Collection[str] = ()) -> ColumnElement[bool]:
    """The trials that anyone may take: their lease has expired, or their holder is dead."""
    left = or_(TrialRow.expires_at <= now(), TrialRow.worker.in_(dead))
    return and_(unended(study), TrialRow.phase.in_(OPEN), left, budget.has_time(study))


def take(session: Session, which: ColumnElement[bool]) -> TrialRow | None:
    """The oldest of these trials, locked; None where there is none that nobody else is taking."""
    # Nearly always there is none, and a look locks nothing.
    if session.scalar(select(TrialRow.id).where(which).limit(1)) is None:
        return None
    return session.scalars(
        select(TrialRow)
        .where(which)
        .order_by(TrialRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).first()


def at_once(study: str) -> ColumnElement[bool]:
    """The trials that wait for whoever looks for work next."""
    at_once = TrialRow.expires_at == AT_ONCE
    return and_(unended(study), TrialRow.phase.in_(OPEN), at_once, budget.has_time(study))
