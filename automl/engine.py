"""The search loop that every worker runs: propose, fingerprint, claim, train, settle, tell."""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial
from pluggy import PluginManager

from automl.candidate import Candidate, propose
from automl.errors import CandidateError, Interrupted, StorageError, TrialError
from automl.evaluation import Evaluation
from automl.failures import failure, free_memory, is_storage_failure, lost
from automl.heartbeat import Heartbeat
from automl.identity.fingerprint import Fingerprint, fingerprint
from automl.ledger.transaction import explaining
from automl.ledger.values import Claimed, Hit, Lease, LeaseLostError, Parked, Settled, Worker
from automl.processes import is_dead
from automl.registry import Kind
from automl.report import Outcome, Report, State
from automl.seeding import ReseedingSampler, seeded
from automl.spec import ATTRIBUTE
from automl.studies import Parts, Study, trial_seed

_log = logging.getLogger("automl")

MAX_ATTEMPTS = 3
"""A trial whose worker was lost this often is not tried again."""

_MAINTAIN_SECONDS = 10.0

_TRIAL_STATE = {
    State.COMPLETE: TrialState.COMPLETE,
    State.PRUNED: TrialState.PRUNED,
    State.FAILED: TrialState.FAIL,
}


@dataclass
class Engine:
    """One worker's search loop over one study.

    stop: when set, the trial under way is given back at its next tick and `run` raises
    Interrupted. hooks: the event plugins to call.
    """

    study: Study
    parts: Parts
    worker: Worker
    hooks: PluginManager
    stop: threading.Event = field(default_factory=threading.Event)
    poll_seconds: float = 0.5

    def __post_init__(self) -> None:
        self.ledger = self.study.ledger
        self.heartbeat = Heartbeat(self.ledger, self.worker)
        self._told: list[int] = []
        self._parked: set[int] = set()
        self._maintained = float("-inf")
        self._adopt()

    def run(self) -> None:
        """Take trials until the budget is spent and nothing is open.

        Raises:
            Interrupted: `stop` was set; what was under way has been given back.
            StorageError: the database failed; what was under way will be taken over.
        """
        self.ledger.enter(self.worker)
        self.heartbeat.start()
        try:
            with explaining(self.ledger.engine):
                self._loop()
        finally:
            self.heartbeat.end()
            self._leave()
        self._event("search_finished", study=self.study.name, trials=self._told_trials())

    def _loop(self) -> None:
        lease: Lease | None = None
        while True:
            if self.stop.is_set():
                self._give_back(lease, None)
                raise Interrupted("interrupted")
            if lease is None and self._maintenance_due():
                lease = self._maintain()
            lease = lease or self._next_lease()
            if lease is not None:
                lease = self._work(lease)
            elif self._finished():
                return
            else:
                self._maintained = float("-inf")
                self.stop.wait(self.poll_seconds)

    # Where work comes from.
    def _next_lease(self) -> Lease | None:
        if len(self._parked) > 1:
            # Waiting costs less than more duplicates, which push a strategy off an optimum.
            self._parked = self.ledger.still_parked(self._parked)
        if len(self._parked) > 1:
            return None
        told, self._told = self._told, []
        return self.ledger.reserve(self.worker, told)

    def _maintenance_due(self) -> bool:
        return time.monotonic() - self._maintained >= _MAINTAIN_SECONDS

    def _maintain(self) -> Lease | None:
        """Now and then: tell what others settled and did not tell, take over what they left."""
        fresh = 0.0 if self._maintained == float("-inf") else _MAINTAIN_SECONDS
        self._maintained = time.monotonic()
        for settled in self.ledger.untold(older_than=fresh):
            self._tell_once(settled)
        dead = {holder for holder in self.ledger.holders() if is_dead(holder)}
        return self.ledger.take_over(self.worker, dead)

    def _finished(self) -> bool:
        """Whether nothing is open; tells on the way what is settled and untold."""
        for settled in self.ledger.untold():
            self._tell_once(settled)
        if self.ledger.open_trials():
            return False
        self._end_orphans()
        return True

    # One trial.
    def _work(self, lease: Lease) -> Lease | None:
        """Take one trial as far as it goes; returns the next lease where settling took one."""
        number = lease.number
        self.heartbeat.hold(lease)
        try:
            trial = self._open_trial(lease)
            number = trial.number
            return self._attempt(lease, trial)
        except LeaseLostError as error:
            _log.warning("trial %s: %s", number, error)
            self._end_orphan(lease.id, number)
            return None
        except Interrupted:
            self._give_back(lease, number)
            raise
        finally:
            self.heartbeat.hold(None)

    def _attempt(self, lease: Lease, trial: optuna.Trial) -> Lease | None:
        if lease.attempt > MAX_ATTEMPTS:
            return self._settle(lease, trial, lost(MAX_ATTEMPTS), 0.0)
        if lease.attempt > 1 and self._is_finished(trial.number):
            ended = TrialError(f"trial {trial.number} was ended by another program")
            return self._settle(lease, trial, failure(ended), 0.0)
        with seeded(trial_seed(self.study.spec, trial.number, "propose")):
            try:
                parts = self._parts_for(lease)
                candidate = self._propose(parts, trial)
                identity = self._fingerprint(parts, candidate, trial.number)
            except Exception as error:
                return self._settle(lease, trial, _outcome_of(error, self._space), 0.0)
        return self._claim(lease, trial, candidate, identity)

    def _claim(
        self, lease: Lease, trial: optuna.Trial, candidate: Candidate, identity: Fingerprint
    ) -> Lease | None:
        told, self._told = self._told, []
        answer = self.ledger.claim(lease, trial.number, identity.digest, identity.level.value, told)
        match answer:
            case Hit(settled):
                self._tell(settled, trial)
            case Parked(id):
                self._parked.add(id)
            case Claimed(claimed):
                self._event("trial_proposed", number=trial.number, decisions=candidate.decisions)
                evaluation = self._evaluation(claimed, trial, resumed=lease.number is not None)
                return self._evaluate(evaluation, candidate)
        return None

    def _evaluation(self, lease: Lease, trial: optuna.Trial, resumed: bool) -> Evaluation:
        device = self.worker.device
        parts = self._parts_for(lease)
        return Evaluation(self.study, parts, lease, trial, device, self._progress, resumed)

    def _evaluate(self, evaluation: Evaluation, candidate: Candidate) -> Lease | None:
        lease, trial = evaluation.lease, evaluation.trial
        started = time.monotonic()
        with seeded(trial_seed(self.study.spec, trial.number, "train")):
            try:
                outcome = evaluation.train(candidate)
            except Interrupted:
                evaluation.flush()
                raise
            except Exception as error:
                invalid = isinstance(error, CandidateError)
                outcome = _outcome_of(error, self._space if invalid else "")
        if outcome.state is State.FAILED:
            free_memory()
        seconds = time.monotonic() - started
        self._event("trial_finished", number=trial.number, outcome=outcome)
        return self._settle(lease, trial, outcome, seconds, evaluation.unwritten)

    def _progress(self) -> None:
        self.heartbeat.tick()
        if self.stop.is_set():
            raise Interrupted("interrupted")

    def _settle(
        self,
        lease: Lease,
        trial: optuna.Trial,
        outcome: Outcome,
        seconds: float,
        reports: list[Report] | None = None,
    ) -> Lease | None:
        told, self._told = self._told, []
        pause = self.stop.is_set() or len(self._parked) > 1 or self._maintenance_due()
        settlement = self.ledger.settle(
            lease,
            trial.number,
            outcome,
            seconds,
            reports or [],
            told,
            None if pause else self.worker,
            self._to_judge(lease, trial, outcome),
        )
        for settled in settlement.settled:
            self._tell(settled, trial if settled.id == lease.id else None)
        return settlement.next

    def _parts_for(self, lease: Lease) -> Parts:
        return self.parts.judge if lease.given is not None and self.parts.judge else self.parts

    def _to_judge(
        self, lease: Lease, trial: optuna.Trial, outcome: Outcome
    ) -> dict[str, Any] | None:
        """The decisions that the judge should train from the start, if any were closed."""
        if self.parts.judge is None or lease.given is not None or not outcome.closed:
            return None
        return {**trial.params, **outcome.closed} if outcome.state is State.COMPLETE else None

    @property
    def _space(self) -> str:
        return f"space {self.parts.names[Kind.SPACE]}"

    def _propose(self, parts: Parts, trial: optuna.Trial) -> Candidate:
        return propose(
            lambda deciding: parts.space.candidate(deciding, parts.task),
            trial,
            parts.trainer.opens,
            space=parts.names[Kind.SPACE],
            trainer=parts.names[Kind.TRAINER],
        )

    def _fingerprint(self, parts: Parts, candidate: Candidate, number: int) -> Fingerprint:
        side_keys = dict(parts.side_keys)
        if candidate.open_decisions and not candidate.decisions:
            # Nothing is left to tell trials apart: they are repeats under other seeds.
            side_keys["repeat"] = number
        return fingerprint(candidate.decisions, candidate.open_decisions, side_keys)

    # Optuna's side.
    def _adopt(self) -> None:
        """Give Optuna's study our strategy and pruner."""
        self.storage = self.study.storage.trials
        self._study_id = self.storage.get_study_id_from_name(self.study.name)
        self.study.optuna.pruner = self.parts.pruner
        self.study.optuna.sampler = ReseedingSampler(
            self.parts.sampler, lambda number: trial_seed(self.study.spec, number, "strategy")
        )

    def _open_trial(self, lease: Lease) -> optuna.Trial:
        """The Optuna trial of a lease: made now, or the one that an earlier attempt made."""
        known = None if lease.attempt == 1 and lease.number is None else self._find_trial(lease)
        if known is not None:
            trial = optuna.Trial(self.study.optuna, self.trial_id(known.number))
            self._draw_again(trial, known)
            return trial
        template = create_trial(
            state=TrialState.RUNNING,
            user_attrs={ATTRIBUTE: {"row": lease.id}},
            system_attrs={} if lease.given is None else {"fixed_params": dict(lease.given)},
        )
        id = self.storage.create_new_trial(self._study_id, template)
        return optuna.Trial(self.study.optuna, id)

    def _draw_again(self, trial: optuna.Trial, known: FrozenTrial) -> None:
        """Draw what an earlier attempt decided, since the draws that follow depend on these."""
        sampler = self.study.optuna.sampler
        for name, distribution in known.distributions.items():
            if not distribution.single() and name not in trial.relative_params:
                sampler.sample_independent(self.study.optuna, known, name, distribution)

    def _find_trial(self, lease: Lease) -> FrozenTrial | None:
        # A worker can die between making Optuna's trial and writing its number to the ledger;
        # the attribute it was made with tells whose it is.
        for trial in self.storage.get_all_trials(self._study_id, deepcopy=False):
            if trial.number == lease.number:
                return trial
            tag = trial.user_attrs.get(ATTRIBUTE, {})
            if (
                lease.number is None
                and tag.get("row") == lease.id
                and not trial.state.is_finished()
            ):
                return trial
        return None

    def _is_finished(self, number: int) -> bool:
        return self.storage.get_trial(self.trial_id(number)).state.is_finished()

    def _end_orphans(self) -> None:
        running = self.storage.get_all_trials(
            self._study_id, deepcopy=False, states=(TrialState.RUNNING,)
        )
        for trial in running:
            tag = trial.user_attrs.get(ATTRIBUTE, {})
            if "row" in tag:
                self._end_orphan(tag["row"], trial.number)

    def _end_orphan(self, row: int, number: int | None) -> None:
        """End an Optuna trial that was made for a slot another worker had taken over already."""
        owned = self.ledger.number_of(row)
        if owned is None or number is None or owned == number:
            return
        if not self._is_finished(number):
            self.study.optuna.tell(number, state=TrialState.FAIL)

    def _tell_once(self, settled: Settled) -> None:
        if settled.id not in self._told:
            self._tell(settled)

    def _tell(self, settled: Settled, trial: optuna.Trial | None = None) -> None:
        """Tell Optuna how a trial ended; telling twice is harmless, it says the same."""
        outcome = settled.outcome
        attribute = _attribute(settled)
        try:
            id = self.trial_id(settled.number)
            self.storage.set_trial_user_attr(id, ATTRIBUTE, attribute)
            if settled.reused_from is not None:
                self._copy_last_report(id, outcome)
            self.study.optuna.tell(
                trial or settled.number,
                list(outcome.values or ()) if outcome.state is State.COMPLETE else None,
                _TRIAL_STATE[outcome.state],
                skip_if_finished=True,
            )
        except UpdateFinishedTrialError:
            self._told.append(settled.id)
            return
        self._told.append(settled.id)
        if settled.reused_from is not None:
            self._event(
                "trial_reused",
                number=settled.number,
                source=settled.reused_from,
                level=settled.level or "",
            )

    def _copy_last_report(self, id: int, outcome: Outcome) -> None:
        """A pruned trial's value is its last report, so a reused one needs that, too."""
        if outcome.state is State.PRUNED and outcome.step is not None and outcome.values:
            self.storage.set_trial_intermediate_value(id, outcome.step, outcome.values[0])

    def trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    # Ends.
    def _give_back(self, lease: Lease | None, number: int | None) -> None:
        if lease is not None:
            self.ledger.give_back(lease, lease.number if number is None else number)

    def _leave(self) -> None:
        try:
            if self._told:
                self.ledger.mark_told(self._told)
            self.ledger.leave(self.worker)
        except StorageError as error:
            _log.warning("cannot sign off: %s", error)

    def _told_trials(self) -> int:
        return self.study.views.counts().trials

    def _event(self, name: str, **arguments: Any) -> None:
        arguments.setdefault("study", self.study.name)
        try:
            getattr(self.hooks.hook, name)(**arguments)
        except Exception:
            _log.warning("a plugin's %s raised; the search goes on", name, exc_info=True)


def _outcome_of(error: Exception, where: str) -> Outcome:
    """A failed trial's outcome; what is not the trial's fault is raised again."""
    if isinstance(error, Interrupted | LeaseLostError) or is_storage_failure(error):
        raise error
    return failure(error, where)


def _attribute(settled: Settled) -> dict[str, Any]:
    known = {
        "fingerprint": settled.fingerprint,
        "level": settled.level,
        "reused_from": settled.reused_from,
        "attempt": settled.attempt,
        "judges": settled.judges,
        "seconds": settled.seconds,
        "error": settled.outcome.message,
    }
    return {key: value for key, value in known.items() if value is not None}
