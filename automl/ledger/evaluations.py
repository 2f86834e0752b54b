"""The evaluations of a function: who owns which, who waits, and what is served of them."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select, true
from sqlalchemy.orm import Session

from automl.identity.fingerprint import Level
from automl.ledger.budget import count, stop_if_exhausted
from automl.ledger.clock import now
from automl.ledger.dialects import changed, insert_if_absent, table, update_table
from automl.ledger.functions import Resolved, adopt, former_names, free_replicate
from automl.ledger.models import (
    EvaluationRow,
    EvaluationState,
    KeyRow,
    Phase,
    Role,
    TrialRow,
)
from automl.ledger.values import Lease, Settled, quality_columns, settled_of
from automl.plugin.protocols import derive_seed
from automl.plugin.report import COSTS, Outcome, State
from automl.spec import Cache, Scope

_TRIES = 64
_IMPORTED = 64
"""How many evaluations of other studies are looked at."""


@dataclass(frozen=True)
class Terms:
    """Under which terms a study shares: its cache, and the metrics it needs."""

    study: str
    cache: Cache
    objectives: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """A trial that asks for the evaluation of its function, with its own costs."""

    lease: Lease
    number: int
    function: Resolved
    costs: Mapping[str, float]

    @property
    def owner(self) -> dict[str, Any]:
        """The columns of an evaluation that say whose it is."""
        decisions = self.function.identity.l0
        return _owner(self.lease.id, self.number, decisions)


@dataclass(frozen=True)
class Served:
    """What a function gives to who does not evaluate it: the mean of its n evaluations."""

    evaluation: int
    state: State
    metrics: Mapping[str, float | None]
    n: int
    step: int | None
    closed: dict[str, Any] | None
    number: int | None
    source_study: str | None
    decisions: frozenset[str | None]

    def objectives(
        self, terms: Terms, costs: Mapping[str, float] | None
    ) -> tuple[float, ...] | None:
        """The objectives' values for a trial of these costs; None where one is missing."""
        known = {**self.metrics, **(costs or {})}
        values = [known.get(name) for name in terms.objectives]
        found = tuple(float(value) for value in values if value is not None)
        return found if len(found) == len(values) else None


@dataclass(frozen=True)
class Owned:
    """The evaluation is the trial's; known: it has been evaluated before, and will be again."""

    evaluation: int
    known: bool = False
    audits: bool = False


@dataclass(frozen=True)
class Waits:
    """Another trial evaluates it now."""

    evaluation: int


Standing = Owned | Waits | Served


def ask(session: Session, terms: Terms, request: Request) -> Standing:
    """What a trial has to do to get a result: evaluate, wait, or take what is known."""
    if not _shareable(terms, request):
        return Owned(_own_alone(session, _alone(terms, request, Role.OWN)))
    if request.function.level is None and terms.cache.scope is Scope.STUDY:
        # Nearly always nothing is there yet, and then this is all.
        made = insert_if_absent(session, EvaluationRow, _new(terms, request, 0))
        if made is not None:
            return Owned(made)
    for _ in range(_TRIES):
        rows = _evaluations(session, terms.study, request.function.fingerprint)
        found = _standing(session, terms, request, rows)
        if found is not None:
            return found
    raise AssertionError("each lost race leaves one evaluation more")


def _standing(
    session: Session, terms: Terms, request: Request, rows: Sequence[EvaluationRow]
) -> Standing | None:
    """None where another worker was quicker, so that one has to look again."""
    mine = next((row for row in rows if row.owner == request.lease.id and _runs(row)), None)
    if mine is not None:
        return Owned(mine.id, mine.role is Role.AUDIT, mine.role is Role.AUDIT)
    shared = _shared(rows)
    vacant = _vacancy(terms, shared)
    if vacant is not None:
        if _find_more(session, terms, request, shared):
            return None
        made = _take(session, shared, _new(terms, request, vacant))
        return None if made is None else Owned(made)
    served = _served(terms, shared)
    if served is None:
        return Waits(_running(shared).id)
    return _hit(session, terms, request, shared, served)


def _find_more(
    session: Session, terms: Terms, request: Request, shared: Sequence[EvaluationRow]
) -> bool:
    """Whether evaluations came from a function's former names, or from other studies."""
    names = (terms.study, request.function.fingerprint)
    if Level.L2 in terms.cache.levels and adopt(session, *names):
        return True
    # What was forgotten is not to come back from there.
    forgotten = any(row.served is not None for row in shared)
    if terms.cache.scope is not Scope.STORAGE or forgotten:
        return False
    return _import(session, terms, request, shared)


def _hit(
    session: Session,
    terms: Terms,
    request: Request,
    shared: Sequence[EvaluationRow],
    served: Served,
) -> Standing:
    if served.objectives(terms, request.costs) is None:
        return Owned(_own_alone(session, _alone(terms, request, Role.OWN)))
    instead = {
        "metrics": dict(served.metrics),
        "n": served.n,
        "merged": served.decisions != {request.function.identity.l0},
    }
    # Others may wait for what still runs.
    finished = not any(_runs(row) for row in shared)
    if finished and _drawn(terms.cache.forget, terms, request, "forget"):
        return Owned(_forget(session, request, shared, instead), known=True)
    if served.state is State.COMPLETE and _drawn(terms.cache.audit, terms, request, "audit"):
        audit = {**_alone(terms, request, Role.AUDIT), "served": instead}
        return Owned(_own_alone(session, audit), known=True, audits=True)
    return served


def end(
    session: Session, evaluation: int, owner: int, number: int, outcome: Outcome, seconds: float
) -> list[int]:
    """Write an owner's result; returns the trials that wait for it, oldest first."""
    result = {**quality_columns(outcome), "number": number, "seconds": seconds}
    columns = table(EvaluationRow).c
    mine = (columns.id == evaluation, columns.owner == owner)
    state = EvaluationState(outcome.state.value)
    if not changed(session, update_table(EvaluationRow).where(*mine).values(state=state, **result)):
        return []
    waiting = (TrialRow.evaluation == evaluation, TrialRow.phase == Phase.PARKED)
    return list(session.scalars(select(TrialRow.id).where(*waiting).order_by(TrialRow.id)))


def release(
    session: Session, terms: Terms, evaluation: int, parked: Iterable[int]
) -> list[Settled]:
    """Let parked trials go on after an evaluation ended: evaluate, wait for another, or end."""
    ended = session.get_one(EvaluationRow, evaluation, populate_existing=True)
    settled = []
    for id in parked:
        trial = session.get_one(TrialRow, id, populate_existing=True)
        settled += _release(session, terms, ended.fingerprint, trial)
    return settled


def _release(session: Session, terms: Terms, fingerprint: str, trial: TrialRow) -> list[Settled]:
    owner = _owner(trial.id, trial.number, (trial.identification or {}).get("l0"))
    for _ in range(_TRIES):
        shared = _shared(_evaluations(session, terms.study, fingerprint))
        if (vacant := _vacancy(terms, shared)) is not None:
            made = _take(session, shared, {**_key(terms.study, fingerprint, vacant), **owner})
            if made is None:
                continue
            _promote(session, trial, made)
        elif (served := _served(terms, shared)) is None:
            trial.evaluation = _running(shared).id
            session.flush()
        elif served.objectives(terms, trial.costs) is None:
            alone = {**_key(terms.study, fingerprint, -trial.id), **owner, "role": Role.OWN}
            _promote(session, trial, _own_alone(session, alone))
        else:
            return [settle_served(session, terms, trial.id, served)]
        return []
    raise AssertionError("each lost race leaves one evaluation more")


def settle_served(session: Session, terms: Terms, waiting: int, served: Served) -> Settled:
    """End a trial with what its function gave; nothing was paid for it."""
    row = session.get_one(TrialRow, waiting, populate_existing=True)
    values = served.objectives(terms, row.costs)
    row.phase, row.state = Phase.SETTLED, served.state
    row.objectives = None if values is None else list(values)
    row.metrics = {**served.metrics, **(row.costs or {})}
    row.step, row.closed = served.step, served.closed
    row.reused_from, row.reused_study = served.number, served.source_study
    row.evaluation = served.evaluation
    row.settled_at, row.seconds = now(), 0.0
    session.flush()
    count(session, terms.study, payable=-1, repeats=1)
    stop_if_exhausted(session, terms.study, terms.cache.exhausted_after)
    return settled_of(row)


# What is there.
def _evaluations(session: Session, study: str, fingerprint: str) -> Sequence[EvaluationRow]:
    """A function's evaluations in a study, locked, so that none ends before we wait for it."""
    return session.scalars(
        select(EvaluationRow)
        .where(EvaluationRow.study == study, EvaluationRow.fingerprint == fingerprint)
        .order_by(EvaluationRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()


def _shared(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    shared = [row for row in rows if row.role is Role.SHARED]
    return sorted(shared, key=lambda row: row.replicate)


def _runs(row: EvaluationRow) -> bool:
    return row.state is EvaluationState.RUNNING


def _running(shared: Sequence[EvaluationRow]) -> EvaluationRow:
    return next(row for row in shared if _runs(row))


def _vacancy(terms: Terms, shared: Sequence[EvaluationRow]) -> int | None:
    """The replicate to evaluate next: one that failed, or none had yet; None: enough are taken."""
    failed = [row.replicate for row in shared if row.state is EvaluationState.FAILED]
    if len(shared) - len(failed) >= terms.cache.repeats:
        return None
    return failed[0] if failed else free_replicate(row.replicate for row in shared)


def _served(terms: Terms, shared: Sequence[EvaluationRow]) -> Served | None:
    """The mean of what is complete, else what was pruned; None while it has to be waited for."""
    complete = [row for row in shared if row.state is EvaluationState.COMPLETE]
    if len(complete) < terms.cache.repeats and any(_runs(row) for row in shared):
        return None
    pruned = [row for row in shared if row.state is EvaluationState.PRUNED]
    of = complete or pruned[:1]
    first = of[0]
    return Served(
        evaluation=first.id,
        state=State(first.state.value),
        metrics=means([row.metrics or {} for row in of]),
        n=len(of),
        step=first.step,
        closed=first.closed,
        number=first.number,
        source_study=first.source_study,
        decisions=frozenset(row.decisions for row in of),
    )


def means(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Each metric's mean over those that have a number for it; None where none has."""
    names = dict.fromkeys(name for one in metrics for name in one)
    numbers = {name: [one[name] for one in metrics if one.get(name) is not None] for name in names}
    return {name: statistics.fmean(found) if found else None for name, found in numbers.items()}


def _shareable(terms: Terms, request: Request) -> bool:
    costs_known = all(name in request.costs for name in terms.objectives if name in COSTS)
    return terms.cache.enabled and request.function.shared and costs_known


def _drawn(probability: float, terms: Terms, request: Request, use: str) -> bool:
    """A decision by chance that is the same when its transaction runs again."""
    return derive_seed(terms.study, request.number, use) < probability * 2**32


# What is written.
def _key(study: str, fingerprint: str, replicate: int) -> dict[str, Any]:
    return {"study": study, "fingerprint": fingerprint, "replicate": replicate}


def _owner(id: int, number: int | None, decisions: str | None) -> dict[str, Any]:
    running = {"state": EvaluationState.RUNNING, "source": None, "source_study": None}
    return {"owner": id, "number": number, "decisions": decisions, **running}


def _new(terms: Terms, request: Request, replicate: int) -> dict[str, Any]:
    key = _key(terms.study, request.function.fingerprint, replicate)
    return {**key, **request.owner, "role": Role.SHARED}


def _take(session: Session, shared: Sequence[EvaluationRow], values: dict[str, Any]) -> int | None:
    """Make a vacant replicate an owner's; None where another worker did so meanwhile."""
    failed = next((row for row in shared if row.replicate == values["replicate"]), None)
    if failed is None:
        made = insert_if_absent(session, EvaluationRow, {**values, "role": Role.SHARED})
        return None if made is None else int(made)
    _restart(session, failed, values)
    return failed.id


def _restart(session: Session, row: EvaluationRow, owner: Mapping[str, Any]) -> None:
    nothing = {"metrics": None, "step": None, "closed": None, "seconds": None}
    for name, value in {**owner, **nothing}.items():
        setattr(row, name, value)
    session.flush()


def _alone(terms: Terms, request: Request, role: Role) -> dict[str, Any]:
    key = _key(terms.study, request.function.fingerprint, -request.lease.id)
    return {**key, **request.owner, "role": role}


def _own_alone(session: Session, values: dict[str, Any]) -> int:
    """An evaluation that nobody else is served with."""
    made = insert_if_absent(session, EvaluationRow, values)
    if made is not None:
        return int(made)
    columns = table(EvaluationRow).c
    mine = [columns[name] == values[name] for name in ("study", "fingerprint", "replicate")]
    session.execute(update_table(EvaluationRow).where(*mine).values(values))
    return int(session.scalars(select(columns.id).where(*mine)).one())


def _forget(
    session: Session,
    request: Request,
    shared: Sequence[EvaluationRow],
    instead: Mapping[str, Any],
) -> int:
    """Drop what is known of a function, none of which runs; the trial evaluates it anew.

    instead: what it would have been served, which says from now on that the study forgot it.
    """
    first, *others = shared
    columns = table(EvaluationRow)
    session.execute(delete(columns).where(columns.c.id.in_([row.id for row in others])))
    _restart(session, first, {**request.owner, "served": instead})
    return first.id


def _import(
    session: Session, terms: Terms, request: Request, shared: Sequence[EvaluationRow]
) -> bool:
    """Copy what other studies know of a function to where an evaluation is still wanted."""
    taken = [row for row in shared if row.state is not EvaluationState.FAILED]
    wanted = terms.cache.repeats - len(taken)
    known = {row.source for row in shared if row.source is not None}
    found = session.execute(
        select(*(table(EvaluationRow).c[name] for name in ("id", "study", *_COPIED)))
        .where(
            _is_of(request.function.fingerprint, terms.cache),
            EvaluationRow.study != terms.study,
            EvaluationRow.state == EvaluationState.COMPLETE,
            EvaluationRow.role == Role.SHARED,
            EvaluationRow.source.is_(None),
        )
        .order_by(EvaluationRow.id)
        .limit(_IMPORTED)
    ).all()
    useful = [row for row in found if row.id not in known and _serves(terms, row.metrics)]
    for row in useful[:wanted]:
        _copy(session, terms, request, row)
    return bool(useful)


def _is_of(fingerprint: str, cache: Cache) -> ColumnElement[bool]:
    """Whether an evaluation of any study is of a function, at the levels that are in use here."""
    named = EvaluationRow.fingerprint == fingerprint
    if Level.L2 in cache.levels:
        named = or_(named, EvaluationRow.fingerprint.in_(former_names(fingerprint)))
    known = select(KeyRow.key).where(
        KeyRow.fingerprint == fingerprint, KeyRow.through.in_(cache.levels)
    )
    everything = set(cache.levels) == set(Level)
    return named & (true() if everything else EvaluationRow.decisions.in_(known))


_COPIED = ("number", "metrics", "step", "closed", "decisions", "owner")


def _serves(terms: Terms, metrics: Mapping[str, Any] | None) -> bool:
    needed = [name for name in terms.objectives if name not in COSTS]
    return all((metrics or {}).get(name) is not None for name in needed)


def _copy(session: Session, terms: Terms, request: Request, row: Any) -> None:
    shared = _shared(_evaluations(session, terms.study, request.function.fingerprint))
    if (vacant := _vacancy(terms, shared)) is None:
        return
    result = {name: getattr(row, name) for name in _COPIED}
    copied = {"state": EvaluationState.COMPLETE, "source": row.id, "source_study": row.study}
    key = _key(terms.study, request.function.fingerprint, vacant)
    values = {**key, **result, **copied, "seconds": 0.0}
    failed = next((one for one in shared if one.replicate == vacant), None)
    if failed is None:
        insert_if_absent(session, EvaluationRow, {**values, "role": Role.SHARED})
        return
    for name, value in values.items():
        setattr(failed, name, value)
    session.flush()


def _promote(session: Session, trial: TrialRow, evaluation: int) -> None:
    """Make a parked trial the owner; its lease has expired, so any worker takes it up."""
    trial.phase, trial.worker, trial.evaluation = Phase.TRAINING, None, evaluation
    trial.attempt, trial.expires_at = 0, 0.0
    # The worker that parked it has the old token, and may have a renewal under way still.
    trial.token += 1
    session.flush()
