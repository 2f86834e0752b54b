"""What must hold in a study's ledger whatever happened to its workers, and how to mend it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import isclose

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from automl.ledger import evaluations
from automl.ledger.clock import now
from automl.ledger.dialects import update_table
from automl.ledger.evaluations import Terms, means
from automl.ledger.models import EvaluationRow, EvaluationState, Phase, Role, StudyRow, TrialRow
from automl.ledger.transaction import reading, transactional
from automl.plugin.report import COSTS

_OPEN = (Phase.PROPOSING, Phase.TRAINING)


class Rule(Enum):
    """What must hold; the values are words for people and for `--json`."""

    PHASE = "final or leased"
    FLIGHT = "one evaluation at a time"
    MEANS = "results served are the means"
    TOLD = "told once"
    ARTIFACTS = "artifacts exist"
    BUDGET = "budget kept"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it must be; broken: no worker will put it right by itself."""

    rule: Rule
    number: int | None
    message: str
    broken: bool = True


@dataclass(frozen=True)
class Checks:
    """Looks through the ledger of one study."""

    engine: Engine
    terms: Terms

    @reading
    def findings(self, session: Session) -> list[Finding]:
        """All that is not as it must be, or that waits for a worker."""
        trials = session.scalars(select(TrialRow).where(TrialRow.study == self.terms.study)).all()
        rows = session.scalars(
            select(EvaluationRow).where(EvaluationRow.study == self.terms.study)
        ).all()
        study = session.get_one(StudyRow, self.terms.study)
        time = float(session.scalar(select(now())) or 0.0)
        return [
            *_of_phases(trials, time),
            *_of_flights(trials, rows),
            *_of_means(trials, rows, self.terms.cache.repeats),
            *_of_budget(study, trials),
        ]

    @transactional
    def repair(self, session: Session) -> None:
        """End evaluations that nobody runs, let go on who waits for them, count anew."""
        # Held throughout, so that no slot is taken meanwhile and counted neither here nor there.
        session.execute(
            select(StudyRow.uuid).where(StudyRow.uuid == self.terms.study).with_for_update()
        )
        mine = EvaluationRow.study == self.terms.study
        # Before the trials: what a trial begins to evaluate after this look is none of them.
        rows = session.scalars(select(EvaluationRow).where(mine).with_for_update()).all()
        trials = {
            row.id: row
            for row in session.scalars(
                select(TrialRow).where(TrialRow.study == self.terms.study).with_for_update()
            )
        }
        for row in rows:
            if _is_ownerless(row, trials):
                row.state = EvaluationState.FAILED
        session.flush()
        runs = EvaluationRow.state == EvaluationState.RUNNING
        running = set(session.scalars(select(EvaluationRow.id).where(mine, runs)))
        for trial in trials.values():
            if trial.phase is Phase.PARKED and trial.evaluation not in running:
                self._release(session, trial)
        session.flush()
        _count_anew(session, self.terms.study)

    def _release(self, session: Session, trial: TrialRow) -> None:
        known = None if trial.evaluation is None else session.get(EvaluationRow, trial.evaluation)
        if known is not None:
            evaluations.release(session, self.terms, known.id, [trial.id])
            return
        # What it waited for is gone altogether: it is proposed again from its decisions.
        trial.phase, trial.worker, trial.evaluation = Phase.PROPOSING, None, None
        trial.attempt, trial.expires_at, trial.token = 0, 0.0, trial.token + 1


def _of_phases(trials: Sequence[TrialRow], time: float) -> Iterator[Finding]:
    for trial in trials:
        if trial.phase is Phase.SETTLED:
            if trial.state is None or trial.number is None:
                yield Finding(Rule.PHASE, trial.number, "it is settled without a result")
        elif trial.phase in _OPEN and trial.worker is None and (trial.expires_at or 0.0) <= time:
            yield Finding(Rule.PHASE, trial.number, "it waits for a worker", broken=False)


def _of_flights(trials: Sequence[TrialRow], rows: Sequence[EvaluationRow]) -> Iterator[Finding]:
    by_id, known = {trial.id: trial for trial in trials}, {row.id: row for row in rows}
    for row in rows:
        if _is_ownerless(row, by_id):
            yield Finding(Rule.FLIGHT, row.number, "its evaluation runs, but nobody runs it")
    for trial in trials:
        evaluation = None if trial.evaluation is None else known.get(trial.evaluation)
        if trial.phase is Phase.PARKED and (evaluation is None or not _runs(evaluation)):
            yield Finding(Rule.FLIGHT, trial.number, "it waits for an evaluation that is over")
        if trial.phase is Phase.TRAINING and (evaluation is None or evaluation.owner != trial.id):
            yield Finding(Rule.FLIGHT, trial.number, "it trains what is another's to evaluate")


def _of_means(
    trials: Sequence[TrialRow], rows: Sequence[EvaluationRow], repeats: int
) -> Iterator[Finding]:
    """Results that differ from what their evaluations come to."""
    owners = {trial.id: trial for trial in trials}
    known = {row.id: row for row in rows}
    shared = defaultdict(list)
    for row in rows:
        if row.role is Role.SHARED:
            shared[row.fingerprint].append(row)
    for trial in trials:
        gave = None if trial.evaluation is None else known.get(trial.evaluation)
        if gave is None or trial.phase is not Phase.SETTLED or _runs(gave):
            continue
        if trial.reused_from is None:
            sound = gave.owner != trial.id or _agree(trial, gave.metrics or {})
        else:
            equal = shared[gave.fingerprint]
            # What was forgotten since cannot be looked at any more.
            forgotten = any(each.served for each in equal)
            served = [gave] if repeats == 1 else [r for r in equal if _was_there(r, trial, owners)]
            sound = forgotten or not served or _agree(trial, _mean(served))
        if not sound:
            yield Finding(Rule.MEANS, trial.number, "its result is not what its function gave")


def _mean(rows: Sequence[EvaluationRow]) -> dict[str, float | None]:
    return means([row.metrics or {} for row in rows])


def _was_there(row: EvaluationRow, trial: TrialRow, owners: Mapping[int, TrialRow]) -> bool:
    """Whether an evaluation was complete when a trial was served."""
    owner = owners.get(row.owner)
    complete = row.state is EvaluationState.COMPLETE
    return complete and (row.source is not None or owner is None or _before(owner, trial))


def _before(owner: TrialRow, trial: TrialRow) -> bool:
    return (owner.settled_at or 0.0) <= (trial.settled_at or 0.0)


def _agree(trial: TrialRow, metrics: Mapping[str, float | None]) -> bool:
    """Whether a trial has these metrics of quality, costs being its own."""
    ours = {k: v for k, v in (trial.metrics or {}).items() if k not in COSTS}
    if ours.keys() != metrics.keys():
        return False
    pairs = [(ours[name], metrics[name]) for name in ours]
    return all(a == b or (a is not None and b is not None and isclose(a, b)) for a, b in pairs)


def _of_budget(study: StudyRow, trials: Sequence[TrialRow]) -> Iterator[Finding]:
    slots, payable, seconds = _counts(trials)
    if study.slots != slots:
        yield Finding(Rule.BUDGET, None, f"{study.slots} slots are counted, {slots} are taken")
    if study.payable != payable:
        said = f"{study.payable} evaluations are counted, {payable} were or may be paid for"
        yield Finding(Rule.BUDGET, None, said)
    if study.trials_limit is not None and slots > study.trials_limit:
        yield Finding(Rule.BUDGET, None, f"{slots} trials, {study.trials_limit} were allowed")
    if study.evaluations_limit is not None and payable > study.evaluations_limit:
        said = f"{payable} evaluations, {study.evaluations_limit} were allowed"
        yield Finding(Rule.BUDGET, None, said)
    if abs(study.device_seconds - seconds) > 1e-3 + 1e-9 * seconds:
        said = f"{study.device_seconds:.3f} s of device time are counted, {seconds:.3f} s charged"
        yield Finding(Rule.BUDGET, None, said)


def _counts(trials: Sequence[TrialRow]) -> tuple[int, int, float]:
    """Slots, payable evaluations and device time, from the trials themselves."""
    slots = sum(trial.judges is None for trial in trials)
    settled = [trial for trial in trials if trial.phase is Phase.SETTLED]
    paid = sum(trial.evaluation is not None and trial.reused_from is None for trial in settled)
    seconds = sum(trial.device_seconds for trial in trials)
    return slots, len(trials) - len(settled) + paid, seconds


def _count_anew(session: Session, study: str) -> None:
    trials = session.scalars(select(TrialRow).where(TrialRow.study == study)).all()
    slots, payable, seconds = _counts(trials)
    counts = {"slots": slots, "payable": payable, "device_seconds": seconds}
    session.execute(update_table(StudyRow).where(StudyRow.uuid == study).values(counts))


def _runs(row: EvaluationRow) -> bool:
    return row.state is EvaluationState.RUNNING


def _is_ownerless(row: EvaluationRow, trials: Mapping[int, TrialRow]) -> bool:
    owner = trials.get(row.owner)
    return _runs(row) and (owner is None or owner.phase not in _OPEN)
