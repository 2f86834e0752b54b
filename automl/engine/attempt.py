"""One trial in training: runs the trainer's generator, stores its reports, asks the pruner."""

import logging
import math
import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import NopPruner

from automl.engine.failures import is_storage_failure
from automl.engine.stopping import Stop
from automl.errors import (
    Interrupted,
    TimeLimitError,
    TrialError,
    UnstorableError,
)
from automl.ledger.values import Lease
from automl.plugin.protocols import Run
from automl.plugin.registry import Kind
from automl.plugin.report import (
    COSTS,
    Objective,
    Outcome,
    Report,
    Requirement,
    State,
    broken,
    objective_values,
)
from automl.space.candidate import Candidate
from automl.space.decisions import Open, fits, values_of
from automl.spec import SECONDS
from automl.storable import by_metric_name, short, size_fault, value_fault
from automl.study.parts import Parts
from automl.study.study import Study, trial_seed
from automl.text.redaction import redact_urls
from automl.trial_code.boundary import EngineCode, TrialCode, trial_error_text
from automl.trial_code.deadline import NEVER, Deadline

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger("automl")

_REPORT_SECONDS = 1.0
_LONGEST_REPORT = 1_000_000
"""Bytes of a report's metrics: servers limit what comes in one piece."""
_SAVE_SHARE = 50
"""A checkpoint is written when this many times as long has passed as writing the last took."""


@dataclass
class Evaluation:
    """One trial in training; `unwritten` are its reports that the ledger does not have yet.

    costs: the candidate's own, which join its metrics. progress: called at each tick.
    announce: called with the seconds that no tick may come. reported: called with all metrics of
    each report. deadline: holds the trainer to the study's time limits. resumed: an earlier
    attempt, or an interrupted one, may have reported already.
    """

    study: Study
    parts: Parts
    lease: Lease
    trial: optuna.Trial
    device: str
    costs: Mapping[str, float]
    stop: Stop
    progress: Callable[[], None]
    announce: Callable[[float], None]
    reported: Callable[[Mapping[str, float]], None]
    deadline: Deadline
    resumed: bool = False
    unwritten: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open_decisions: Mapping[str, Open] = {}
        self.weights: Callable[[], Mapping[str, Tensor]] | None = None
        self._reported_at = self.deadline.clock()
        # What earlier attempts took counts, too; where something else is metered, it is unknown.
        measured = self.study.spec.cost_metric == SECONDS
        self._began = self.deadline.clock() - (self.lease.device_seconds if measured else 0.0)
        self._written_at = self._saved_at = time.monotonic()
        self._save_seconds = 0.0
        self._saves = True
        self._pid = os.getpid()
        self._run = Run(
            device=self.device,
            seed=trial_seed(self.study.spec, self.trial.number, "train"),
            number=self.trial.number,
            attempt=self.lease.attempt,
            directory=self.study.directory(self.trial.number),
            progress=self._tick,
            announce=self._announce,
            checkpoint=self.lease.checkpoint,
        )

    @property
    def micro_batches(self) -> int:
        """In how many parts each batch is passed."""
        return self._run.micro_batches

    def in_micro_batches(self, parts: int) -> None:
        """Have the next training pass each batch in so many parts; it may report steps again."""
        self._run = replace(self._run, micro_batches=parts)
        self._reported_at = self.deadline.clock()
        self.resumed = True
        self.__dict__.pop("_reported_before", None)

    def train(self, candidate: Candidate) -> Outcome:
        """Train to the end, or until the pruner says stop.

        Raises:
            TrialError: the trainer reports nothing, or not what was promised.
            TimeLimitError: the trial, or one step of it, takes longer than the study allows.
            Interrupted: the worker was asked to stop.
            BudgetSpentError: the study's time is over.
            LeaseLostError: another worker took the trial over.
        """
        self.open_decisions = candidate.open_decisions
        self.deadline.until(*self._due())
        with TrialCode():
            reports = iter(self.parts.trainer.train(candidate, self.parts.task, self._run))
        last: Outcome | None = None
        try:
            while (report := _next(reports)) is not None:
                last = self._take(report, last)
                if self._should_prune(last):
                    return replace(last, state=State.PRUNED)
                if self.stop.is_set():
                    raise Interrupted("interrupted")
                self._tick()
        finally:
            self.deadline.grant()
            _close(reports)
        name = self.parts.names[Kind.TRAINER]
        last = last or self._as_it_was_left()
        if last is None:
            raise TrialError(f"trainer {name} reported nothing: yield a Report each step")
        self._require(last, self.study.spec.requirements)
        return last

    def _require(self, outcome: Outcome, requirements: Iterable[Requirement]) -> None:
        """See that what is required is known; costs are from the first report on."""
        for each in requirements:
            if each.metric not in outcome.metrics:
                name, known = self.parts.names[Kind.TRAINER], ", ".join(outcome.metrics)
                raise TrialError(f"trainer {name} reports no {each.metric!r}, only {known}")

    def _as_it_was_left(self) -> Outcome | None:
        """What an earlier attempt came to that was stopped between its last report and its end.

        From the checkpoint of its last step, a trainer may have nothing left to report.
        """
        number = self.trial.number
        if self.lease.checkpoint is None or self.open_decisions:
            return None
        steps = self.study.views.curves({number}).get(number)
        if not steps:
            return None
        step = max(steps)
        metrics = {k: math.nan if v is None else v for k, v in steps[step].items()}
        return outcome_of(Report(step, metrics), None, self.costs, self.study.objectives)

    def _take(self, report: Report, last: Outcome | None) -> Outcome:
        with TrialCode():
            report = checked(report, self.open_decisions)
        outcome = outcome_of(report, last, self.costs, self.study.objectives)
        if last is None:
            self._require(outcome, [r for r in self.study.spec.requirements if r.metric in COSTS])
        self.reported(outcome.metrics)
        self.unwritten.append(report)
        if time.monotonic() - self._written_at >= _REPORT_SECONDS:
            self.flush()
        self._saves = report.checkpoint is not None
        if self._saves and (self.stop.is_set() or self._should_save()):
            self._save(report)
        self._reported_at = self.deadline.clock()
        self.deadline.until(*self._due())
        self.weights = report.weights
        return outcome

    def _tick(self) -> None:
        if os.getpid() != self._pid:
            return  # a loader of data, say, whose progress is none of the trial's
        with EngineCode(waits=False):
            with self.deadline.free():
                self.progress()
            if self.stop.is_set() and (self.stop.overdue or not self._saves):
                raise Interrupted("interrupted")
            due, message = self._due()
            if time.monotonic() > due:
                raise TimeLimitError(message)

    def _announce(self, seconds: float) -> None:
        if os.getpid() == self._pid:
            self.announce(seconds)

    def _due(self) -> tuple[float, str]:
        """Until when the trainer may go on, by the monotonic clock, and what if it does not."""
        limits, dues = self.study.spec.time_limits, [(NEVER, "")]
        if limits.trial is not None:
            said = f"the trial took longer than the {limits.trial:g} s it may take"
            dues.append((self._began + limits.trial, said))
        if limits.epoch is not None:
            said = f"no report came within the {limits.epoch:g} s an epoch may take"
            dues.append((self._reported_at + limits.epoch, said))
        due, message = min(dues)
        return self.deadline.at(due), message

    def flush(self, checkpoint: str | None = None) -> None:
        """Write to the ledger what was reported and it does not have yet.

        checkpoint: the SHA-256 of what the trial can go on from now.
        """
        with self.deadline.free():
            self.study.ledger.renew(self.lease, self.unwritten, checkpoint)
        self.unwritten = []
        self._written_at = time.monotonic()

    def _should_save(self) -> bool:
        passed = time.monotonic() - self._saved_at
        return passed >= max(_REPORT_SECONDS, _SAVE_SHARE * self._save_seconds)

    def _save(self, report: Report) -> None:
        if report.checkpoint is None:
            return
        started = time.monotonic()
        try:
            with TrialCode():
                digest = self._run.save(report.checkpoint())
        except (OSError, RuntimeError) as error:
            where = self._run.directory
            _log.warning(
                "no checkpoint saved in %s: %s", where, redact_urls(trial_error_text(error))
            )
        else:
            # With all reports, since what goes on from here will not report these steps again.
            self.flush(digest)
            self._run.keep_only_last()
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started

    def _should_prune(self, last: Outcome) -> bool:
        if len(self.study.objectives) > 1 or last.step is None or not last.values:
            return False
        with self.deadline.free():
            if last.step not in self._reported_before:
                self.trial.report(last.values[0], last.step)
        if isinstance(self.parts.pruner, NopPruner):
            return False
        try:
            with TrialCode():
                return self.trial.should_prune()
        except Exception as error:
            if is_storage_failure(error) or isinstance(error, TimeLimitError):
                raise
            name = self.parts.names[Kind.PRUNER]
            raise TrialError(f"pruner {name}: {trial_error_text(error)}") from error

    @cached_property
    def _reported_before(self) -> set[int]:
        """The steps that an earlier attempt reported already."""
        if not self.resumed:
            return set()
        return set(self.study.optuna.trials[self.trial.number].intermediate_values)


def refused(costs: Mapping[str, float], requirements: tuple[Requirement, ...]) -> Outcome | None:
    """How a candidate ends whose costs alone break what is required, for it is not trained."""
    looked_at = [each for each in requirements if each.metric in COSTS and each.metric in costs]
    too_much = broken(looked_at, costs)
    if not too_much:
        return None
    said = " and ".join(f"{each} (it has {costs[each.metric]:.15g})" for each in too_much)
    return Outcome(State.PRUNED, metrics=dict(costs), message=f"not trained, it breaks {said}")


def outcome_of(
    report: Report,
    last: Outcome | None,
    costs: Mapping[str, float],
    objectives: tuple[Objective, ...],
) -> Outcome:
    """What a trial has come to with a report; last: what it had come to before.

    Raises:
        TrialError: the report counts no further, or lacks an objective.
    """
    if last is not None and last.step is not None and report.step <= last.step:
        raise TrialError(f"reports must count up: step {report.step} after {last.step}")
    metrics = {**costs, **report.metrics}
    values = objective_values(replace(report, metrics=metrics), objectives)
    return Outcome(State.COMPLETE, values, metrics, report.step, report.closed)


def checked(report: Report, open_decisions: Mapping[str, Open]) -> Report:
    """A report in plain Python values, as every database can hold them.

    Raises:
        TrialError: a step or metric that is no number, two metrics of one name, or a decision
            closed to no value of its.
    """
    step = _step(report.step)
    named = by_metric_name(_named("metrics", report.metrics))
    metrics = {name: _number(name, value, step) for name, value in named.items()}
    if (fault := size_fault(metrics, _LONGEST_REPORT)) is not None:
        raise UnstorableError(f"the report of step {step} cannot be stored: {fault}")
    closed = report.closed
    if closed is not None:
        closed = {n: _closed(n, v, open_decisions) for n, v in _named("closed", closed).items()}
    return replace(report, step=step, metrics=metrics, closed=closed)


def _step(given: object) -> int:
    try:
        step = operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        raise TrialError(f"a report's step must be a whole number, got {short(given)}") from None
    if (fault := value_fault(step)) is not None:
        raise UnstorableError(f"step {short(step)} cannot be stored: {fault}")
    return step


def _named(what: str, given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TrialError(f"a report's {what} must be values by name, got {short(given)}")
    return given


def _number(name: str, value: object, step: int) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise TrialError(
            f"metric {name!r} must be a number, got {short(value)} at step {step}"
        ) from None


def _closed(name: str, value: Any, open_decisions: Mapping[str, Open]) -> Any:
    if name not in open_decisions:
        known = ", ".join(open_decisions) or "none"
        raise TrialError(f"the trainer closed {name!r}, which is not open; open are: {known}")
    plain = value.item() if hasattr(value, "item") else value
    distribution = open_decisions[name].distribution
    if not fits(distribution, plain):
        raise TrialError(
            f"the trainer closed {name!r} with {short(value)}, expected {values_of(distribution)}"
        )
    if (fault := value_fault(plain)) is not None:
        raise UnstorableError(f"the value of {name!r} cannot be stored: {fault}")
    return plain


def _next(reports: Iterator[Report]) -> Report | None:
    """The next report; None at the end.

    Raises:
        TrialError: None was reported.
    """
    with TrialCode():
        report = next(reports, _END)
        if report is None:
            raise TrialError("the trainer yielded None: expected a Report")
    return None if report is _END else report


_END = Report(0, {})


def _close(reports: Iterator[Report]) -> None:
    with TrialCode():
        close = getattr(reports, "close", None)
        if close is not None:
            close()
