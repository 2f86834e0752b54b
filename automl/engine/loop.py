"""The search loop that every worker runs: propose, fingerprint, claim, train, settle, tell."""

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from pluggy import PluginManager

from automl.engine.attempt import Evaluation, refused
from automl.engine.failures import (
    failure,
    forget_peak_memory,
    free_memory,
    hung,
    is_device_loss,
    is_storage_failure,
    lost,
    peak_memory,
)
from automl.engine.heartbeat import Heartbeat
from automl.engine.identifier import Identifier, StrategyContext
from automl.engine.optuna_trials import OptunaTrials
from automl.engine.seeding import seeded
from automl.engine.stopping import Meter, Stop
from automl.engine.surroundings import Surroundings
from automl.engine.worker_ids import is_dead
from automl.errors import (
    AutoMLError,
    CandidateError,
    DeviceLostError,
    EndedAtOnce,
    Interrupted,
    StorageError,
    StrategyError,
    TrialError,
    UncaughtError,
    UnstorableError,
    first_line,
    text_of,
)
from automl.identity.fingerprint import Identity
from automl.ledger.transaction import translate_errors
from automl.ledger.values import (
    BudgetSpentError,
    Claimed,
    Hit,
    Lease,
    LeaseLostError,
    Parked,
    Settled,
    Worker,
)
from automl.plugin.registry import Kind
from automl.plugin.report import Outcome, Reason, Report, State
from automl.space.candidate import Candidate, propose, raised_in_building
from automl.space.decisions import check_taken
from automl.study.parts import Parts, costs_of
from automl.study.study import Study, trial_seed
from automl.study.weights import Models
from automl.trial_code.boundary import TrialCode, is_user_interrupt, leave_trial_code
from automl.trial_code.deadline import NEVER, Deadline

_log = logging.getLogger("automl")

MAX_ATTEMPTS = 3
"""A trial whose worker was lost this often is not tried again."""

MICRO_BATCHES = 8
"""In how many parts a batch is passed after it did not fit into memory."""

_PASSING = (Interrupted, LeaseLostError, BudgetSpentError, DeviceLostError)
"""What ends an attempt and is no failure of the trial's; nor is that of a database."""
_ENDED, _TELLING = "ended", "telling"
"""Notes in a trial's directory: that it ended its process, that the strategy is being told."""
_MAINTAIN_SECONDS = 10.0
_LONGEST_POLL = 2.0


@dataclass
class Engine:
    """One worker's search loop over one study.

    stop: when asked, the trial under way is given back at its next checkpoint, or its next tick,
    and `run` raises Interrupted. hooks: the event plugins to call. poll_seconds: the first pause
    of a worker that has nothing to do; each next one is twice as long, up to two seconds. device:
    what torch calls the worker's device in this process, where that is not its name. prepare:
    called before each training. hung: called once a trial has made no progress for so long that
    its lease is gone. alone: nothing else sees this process end.
    """

    study: Study
    parts: Parts
    worker: Worker
    hooks: PluginManager
    stop: Stop = field(default_factory=Stop)
    poll_seconds: float = 0.25
    device: str = ""
    prepare: Callable[[], None] = lambda: None
    hung: Callable[[], None] = lambda: None
    alone: bool = False

    def __post_init__(self) -> None:
        self.ledger, self.outage_retry = self.study.ledger, self.study.storage.outage_retry
        self.meter = Meter(self.ledger, self.study.spec.cost_metric)
        self.heartbeat = Heartbeat(
            self.ledger, self.worker, beaten=self.meter.refresh, hung=self.hung
        )
        self.device = self.device or self.worker.device
        self.identifier = Identifier(self.study, self.parts, self.device, self._progress)
        context = StrategyContext(self.identifier)
        self.trials = OptunaTrials(self.study, self.parts, self._tell_reused, context)
        self.models = Models(self.study)
        self.deadline = Deadline(self.study.spec.time_limits, self.alone)
        self._parked: set[int] = set()
        self._maintained = float("-inf")

    def run(self) -> None:
        """Take trials until the budget is spent and nothing is open, or the time is over.

        Raises:
            Interrupted: `stop` was asked; what was under way has been given back.
            DeviceLostError: the device fails for good; what was under way has been given back.
            StorageError: the database failed; what was under way will be taken over.
        """
        with self.outage_retry.enabled(self.stop):
            self.ledger.enter(self.worker)
            self._warn_of_foreign_functions()
            self.meter.refresh()
            self.heartbeat.start()
            # What ends the worker against its will, its supervisor is to see.
            signs_off, self._surroundings = False, Surroundings()
            try:
                with translate_errors(self.ledger.engine), self.deadline.held():
                    self._loop()
                signs_off = True
            except (AutoMLError, EndedAtOnce):
                signs_off = True
                raise
            finally:
                self._surroundings.put_back()
                self.heartbeat.end()
                self.identifier.close()
                if signs_off:
                    self._leave()
        self._event("search_finished", trials=self.study.views.counts().trials)

    def _loop(self) -> None:
        lease: Lease | None = None
        while True:
            if self.stop.is_set():
                if lease is not None:
                    self._take_up(lease)
                    self._give_back(None)
                raise Interrupted("interrupted")
            if lease is None and self._maintenance_due():
                lease = self._maintain()
            lease = lease or self._next_lease()
            if lease is not None:
                lease = self._work(lease)
            elif self._finished():
                return
            else:
                self._wait_for_work()

    # Where work comes from.
    def _next_lease(self) -> Lease | None:
        if len(self._parked) > 1:
            # Waiting costs less than more duplicates, which push a strategy off an optimum.
            self._parked = self.ledger.still_parked(self._parked)
        if len(self._parked) > 1:
            return None
        return self.ledger.reserve(self.worker, self.trials.take_told())

    def _wait_for_work(self) -> None:
        """Look now and then until there may be something to do.

        A look only reads: those who train are not to wait for those who do not.
        """
        pause = self.poll_seconds
        while not self.stop.wait(pause * random.uniform(0.5, 1.0)) and not self._may_go_on():
            pause = min(2 * pause, _LONGEST_POLL)
        self._maintained = float("-inf")

    def _may_go_on(self) -> bool:
        if self._maintenance_due() or not self.ledger.open_trials():
            return True
        waits = len(self._parked) > 1
        if waits and self.ledger.still_parked(self._parked) != self._parked:
            return True
        return self.ledger.has_work(self._dead_holders(), slots=not waits)

    def _dead_holders(self) -> set[str]:
        return {holder for holder in self.ledger.holders() if is_dead(holder)}

    def _maintenance_due(self) -> bool:
        return time.monotonic() - self._maintained >= _MAINTAIN_SECONDS

    def _maintain(self) -> Lease | None:
        """Now and then: tell what others settled and did not tell, take over what they left."""
        fresh = 0.0 if self._maintained == float("-inf") else _MAINTAIN_SECONDS
        self._maintained = time.monotonic()
        for settled in self.ledger.untold(older_than=fresh):
            self._tell(settled)
        self._prune()
        if self.outage_retry.seconds_since_outage() < self.ledger.lease_seconds / 4:
            return None  # what expired while nobody could renew it is not lost
        dead = self._dead_holders()
        if not self.ledger.has_work(dead, slots=False):
            return None
        return self.ledger.take_over(self.worker, dead)

    def _finished(self) -> bool:
        """Whether nothing is open, or may go on; tells on the way what is settled and untold."""
        for settled in self.ledger.untold():
            self._tell(settled)
        if self.ledger.is_over():
            return True
        if self.ledger.open_trials():
            return False
        self.trials.end_orphans()
        return True

    # One trial.
    def _work(self, lease: Lease) -> Lease | None:
        """Take one trial as far as it goes; returns the next lease where settling took one."""
        trial = None
        self._take_up(lease)
        self.heartbeat.hold(lease)
        try:
            trial = self.trials.open(lease, self._hold_to_limit)
            try:
                return self._attempt(lease, trial)
            except BaseException as error:
                passing = isinstance(error, _PASSING) or is_storage_failure(error)
                if passing or is_user_interrupt(error):
                    raise
                return self._fail(trial, error)
        except LeaseLostError as error:
            number = trial.number if trial else lease.number
            _log.warning("trial %s: %s", number, error)
            self.trials.end_orphan(lease.id, number)
            return None
        except BudgetSpentError as error:
            number = trial.number if trial else lease.number
            _log.info("trial %s is given back: %s", number, error)
            self._give_back(trial)
            return None
        except BaseException as error:
            # A failed database could not take it back; there its lease decides.
            stays = is_storage_failure(error) or isinstance(error, EndedAtOnce)
            if not stays and not self._given_back:
                counts = isinstance(error, DeviceLostError) or _only_ends_a_process(error)
                self._give_back(trial, counts)
            raise
        finally:
            leave_trial_code()
            self._surroundings.put_back()
            self.deadline.end_trial()
            self.meter.end()
            self.heartbeat.hold(None)

    def _take_up(self, lease: Lease) -> None:
        self._lease, self._used, self._given_back = lease, 0.0, False
        self._surroundings.put_back()

    def _hold_to_limit(self, number: int, note: str = _ENDED) -> None:
        named = f"trial {number} of study {self.study.name}"
        again = self.study.resume_command()
        self.deadline.begin_trial(named, again, self._note(number, note))

    def _tell(self, settled: Settled, trial: optuna.Trial | None = None) -> None:
        """Tell Optuna how a trial ended; what the strategy does then has the limit, too."""
        self._hold_to_limit(settled.number, _TELLING)
        try:
            if trial is None:
                self._tell_for_another(settled)
            else:
                self.trials.tell(settled, trial)
        finally:
            self.deadline.end_trial()

    def _tell_for_another(self, settled: Settled) -> None:
        """Tell what this process did not settle, without the strategy if it ended a process so.

        A note says that this is tried, so that one which ends each process comes to an end.
        """
        if self.trials.has_told(settled):
            return
        number, note = settled.number, self._noted(settled.number, _TELLING)
        if note is not None and ("why" in note or is_dead(str(note.get("worker", "")))):
            why = note.get("why", "a process ended while it was told")
            _log.warning("the strategy is not told how trial %d ended: %s", number, why)
            self.trials.tell(settled, to_strategy=False)
        else:
            self._write_note(number, _TELLING, {"worker": self.worker.id})
            self.trials.tell(settled)
        self.study.remove_checkpoint(number)

    def _fail(self, trial: optuna.Trial, error: BaseException) -> Lease | None:
        """Fail a trial with which this engine could not do what it should, and go on with others.

        One that cannot even be failed is tried again, which counts as an attempt.
        """
        self._surroundings.put_back()
        self._used += self.meter.end()
        try:
            self.deadline.grant()
            outcome = _released(error, failure(error))
            return self._settle(self._lease, trial, outcome, self._used)
        except BaseException as again:
            passing = isinstance(again, LeaseLostError) or is_storage_failure(again)
            if passing or is_user_interrupt(again):
                raise
            self._give_back(trial, counts=True)
            if self._lease.attempt > MAX_ATTEMPTS:
                raise
            _log.warning("trial %d is to be tried again: %s", trial.number, first_line(again))
            return None

    def _attempt(self, lease: Lease, trial: optuna.Trial) -> Lease | None:
        if (ended := self._ended_before(lease, trial)) is not None:
            return self._settle(lease, trial, ended, 0.0)
        identity: Identity | None = None
        with seeded(trial_seed(self.study.spec, trial.number, "propose")):
            try:
                self.trials.raise_for_strategy()
                if not lease.fresh:
                    self.trials.draw_again(trial)
                parts = self._parts_for(lease)
                candidate = self._propose(parts, trial, lease)
                costs = costs_of(parts, candidate)
                if refusal := refused(costs, self.study.spec.requirements):
                    return self._settle(lease, trial, refusal, 0.0)
                identity = self.identifier.identify(parts, candidate, trial.number, costs)
                self.identifier.check(identity)
            except Exception as error:
                outcome = self._outcome(error, self._space)
                return self._settle(lease, trial, outcome, 0.0, identity=identity)
        return self._claim(lease, trial, candidate, identity, costs)

    def _ended_before(self, lease: Lease, trial: optuna.Trial) -> Outcome | None:
        """How a trial ended that is not to be trained: before it came here, or too often."""
        if not lease.fresh and (note := self._noted(trial.number, _ENDED)) is not None:
            return hung(str(note.get("why", "")), str(note.get("stack", "")))
        if lease.attempt > MAX_ATTEMPTS:
            return lost(MAX_ATTEMPTS)
        if lease.number is not None and self.trials.is_finished(trial.number):
            return failure(TrialError(f"trial {trial.number} was ended by another program"))
        return None

    def _note(self, number: int, name: str) -> Path:
        """What the process that ends one which hangs says why in, and where it was."""
        return self.study.directory(number) / name

    def _write_note(self, number: int, name: str, note: Mapping[str, Any]) -> None:
        file = self._note(number, name)
        with suppress(OSError):  # then nobody knows of it, as on another machine
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.write_text(json.dumps(note))

    def _noted(self, number: int, name: str) -> Mapping[str, Any] | None:
        try:
            note = json.loads(self._note(number, name).read_text(errors="replace"))
        except OSError:
            return None
        except ValueError:
            note = None  # it was being written when the machine stopped
        return note if isinstance(note, Mapping) else {}

    def _claim(
        self,
        lease: Lease,
        trial: optuna.Trial,
        candidate: Candidate,
        identity: Identity,
        costs: Mapping[str, float],
    ) -> Lease | None:
        told = self.trials.take_told()
        try:
            answer = self.ledger.claim(lease, trial.number, identity, costs, told)
        except UnstorableError as error:
            return self._settle(lease, trial, failure(error), 0.0)
        match answer:
            case Hit(settled):
                self._tell(settled, trial)
            case Parked(id):
                self._parked.add(id)
            case Claimed(claimed):
                self._lease = claimed
                self._event("trial_proposed", number=trial.number, decisions=candidate.decisions)
                resumed = lease.number is not None
                evaluation = self._evaluation(claimed, trial, costs, resumed)
                return self._evaluate(evaluation, candidate)
        return None

    def _evaluation(
        self, lease: Lease, trial: optuna.Trial, costs: Mapping[str, float], resumed: bool
    ) -> Evaluation:
        return Evaluation(
            self.study,
            self._parts_for(lease),
            lease,
            trial,
            self.device,
            costs,
            self.stop,
            progress=self._train_on,
            announce=self.heartbeat.quiet,
            reported=self.meter.report,
            deadline=self.deadline,
            resumed=resumed,
        )

    def _evaluate(self, evaluation: Evaluation, candidate: Candidate) -> Lease | None:
        lease, trial = evaluation.lease, evaluation.trial
        self.prepare()
        with self.deadline.free():
            self.meter.begin(lease)
        outcome = self._train(evaluation, candidate)
        if outcome.reason is Reason.OUT_OF_MEMORY:
            said = f"{outcome.message}; once more in {MICRO_BATCHES} micro-batches"
            _log.warning("trial %d: %s", trial.number, said)
            evaluation.in_micro_batches(MICRO_BATCHES)
            outcome = self._train(evaluation, candidate)
        self._used = self.meter.end()
        self.identifier.observe(self._used)
        outcome = self._keep(evaluation, outcome)
        self._event("trial_finished", number=trial.number, outcome=outcome)
        return self._settle(lease, trial, outcome, self._used, evaluation.unwritten)

    def _keep(self, evaluation: Evaluation, outcome: Outcome) -> Outcome:
        """Keep the weights of a good trial; how it ends with what came of that."""
        if outcome.state is not State.COMPLETE or evaluation.weights is None:
            return outcome
        self.deadline.until(NEVER, "")
        try:
            self.models.keep(evaluation.trial, outcome, evaluation.weights)
        except Exception as error:
            return self._outcome(error, self._blamed(evaluation.parts, error))
        return outcome

    def _train(self, evaluation: Evaluation, candidate: Candidate) -> Outcome:
        """Train once; what the trial did wrong is its outcome, all else is raised."""
        forget_peak_memory(self.device)
        with seeded(trial_seed(self.study.spec, evaluation.trial.number, "train")):
            try:
                return evaluation.train(candidate)
            except (Interrupted, BudgetSpentError):
                evaluation.flush()
                raise
            except Exception as error:
                outcome = self._outcome(error, self._blamed(evaluation.parts, error))
        if outcome.reason is not Reason.OUT_OF_MEMORY:
            return outcome
        peak, parts = peak_memory(self.device), evaluation.micro_batches
        how = f"{parts} micro-batches" if parts > 1 else "whole batches"
        return replace(outcome, message=f"{outcome.message} ({how}, peak memory {peak})")

    def _outcome(self, error: Exception, where: str) -> Outcome:
        """A failed trial's outcome; what is not the trial's fault is raised again."""
        if isinstance(error, _PASSING) or is_storage_failure(error):
            raise error
        self.deadline.grant()
        _check_device(error)
        outcome = failure(error, "" if isinstance(error, StrategyError) else where)
        return _released(error, outcome)

    def _progress(self) -> None:
        """What a probe does at each tick."""
        self.heartbeat.tick()
        if self.stop.is_set():
            raise Interrupted("interrupted")

    def _train_on(self) -> None:
        """What a trial in training does at each tick."""
        self.heartbeat.tick()
        self.meter.check()

    def _settle(
        self,
        lease: Lease,
        trial: optuna.Trial,
        outcome: Outcome,
        seconds: float,
        reports: list[Report] | None = None,
        identity: Identity | None = None,
    ) -> Lease | None:
        self._surroundings.put_back()
        self.deadline.end_trial()
        pause = self.stop.is_set() or len(self._parked) > 1 or self._maintenance_due()
        told, next_for = self.trials.take_told(), None if pause else self.worker
        rest = (told, next_for, self._to_judge(lease, trial, outcome), identity)
        try:
            settlement = self.ledger.settle(
                lease, trial.number, outcome, seconds, reports or [], *rest, self.meter.metered
            )
        except UnstorableError as error:
            # Without anything of the trial's own, it ends in every case.
            rest = (told, next_for, None, None)
            settlement = self.ledger.settle(
                lease, trial.number, failure(error), seconds, [], *rest, self.meter.metered
            )
        for settled in settlement.settled:
            self._tell(settled, trial if settled.id == lease.id else None)
        self.study.remove_checkpoint(trial.number)
        return settlement.next

    def _parts_for(self, lease: Lease) -> Parts:
        return self.parts.judge if lease.judges is not None and self.parts.judge else self.parts

    def _to_judge(
        self, lease: Lease, trial: optuna.Trial, outcome: Outcome
    ) -> dict[str, Any] | None:
        """The decisions that the judge should train from the start, if any were closed."""
        if self.parts.judge is None or lease.judges is not None or not outcome.closed:
            return None
        return {**trial.params, **outcome.closed} if outcome.state is State.COMPLETE else None

    def _blamed(self, parts: Parts, error: Exception) -> str:
        """The part to name for what went wrong in training; errors of ours name it themselves."""
        if isinstance(error, CandidateError):
            return self._space
        if isinstance(error, AutoMLError) and not isinstance(error, UncaughtError):
            return ""
        if (place := raised_in_building(error)) is not None:
            return f"{self._space}, in {place}" if place else self._space
        return f"trainer {parts.names[Kind.TRAINER]}"

    @property
    def _space(self) -> str:
        return f"space {self.parts.names[Kind.SPACE]}"

    def _propose(self, parts: Parts, trial: optuna.Trial, lease: Lease) -> Candidate:
        given = lease.given or {}
        with TrialCode():
            candidate = propose(
                lambda deciding: parts.space.candidate(deciding, parts.task),
                trial,
                lambda name, among: name not in given and parts.trainer.opens(name, among),
                space=parts.names[Kind.SPACE],
                trainer=parts.names[Kind.TRAINER],
            )
        if lease.judges is None:
            check_taken(given, candidate.decisions)
        return candidate

    # Ends.
    def _give_back(self, trial: optuna.Trial | None, counts: bool = False) -> None:
        """Let others go on with the trial under way, or free its slot."""
        self._surroundings.put_back()
        lease, used = self._lease, self._used + self.meter.end()
        number = lease.number if trial is None else trial.number
        self.ledger.release(lease, number, used, counts, self.meter.metered)
        self._given_back = True

    def _warn_of_foreign_functions(self) -> None:
        if self.study.spec.cache.enabled and (
            foreign := self.ledger.functions.count_other_versions()
        ):
            _log.warning(
                "%d known functions were written by another version of automl and are not used",
                foreign,
            )

    def _prune(self) -> None:
        if self.study.spec.cache.enabled:
            self.ledger.functions.prune(self.study.spec.cache.keep)

    def _leave(self) -> None:
        try:
            if self.trials.told:
                self.ledger.mark_told(self.trials.told)
            self._prune()
            self.ledger.leave(self.worker)
        except StorageError as error:
            _log.warning("cannot sign off: %s", error)

    def _tell_reused(self, settled: Settled) -> None:
        self._event(
            "trial_reused",
            number=settled.number,
            source=settled.reused_from,
            level=settled.level or "",
        )

    def _event(self, name: str, **arguments: Any) -> None:
        arguments.setdefault("study", self.study.name)
        try:
            with TrialCode(watched=False):
                getattr(self.hooks.hook, name)(**arguments)
        except Exception as error:
            # Shown within the boundary, for what an error's text is made of is the plugin's.
            shown = failure(error)
            _log.warning("a plugin's %s raised %s; the search goes on", name, shown.message)
            _log.debug("%s", shown.traceback)


def _only_ends_a_process(error: BaseException) -> bool:
    """Whether nothing of ours raises an error, nor a person."""
    return not isinstance(error, Exception) and not is_user_interrupt(error)


def _check_device(error: Exception) -> None:
    """See that an error leaves the device as it was.

    Raises:
        DeviceLostError: it is the device's last.
    """
    lost = False
    with suppress(Exception), TrialCode():
        lost = is_device_loss(error)
    if lost:
        line = " ".join(text_of(error).split())
        raise DeviceLostError(f"the device was lost: {line}; restart this worker") from error


def _released(error: BaseException, outcome: Outcome) -> Outcome:
    """A failed trial's outcome, once its error holds on to nothing that was the trial's.

    What ends by that runs code of the trial's, as a suspended generator does.
    """
    try:
        with TrialCode():
            free_memory(error)
    except Exception as late:
        return failure(late)
    return outcome
