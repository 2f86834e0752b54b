"""One trial trained again from its stored decisions, outside its study, and compared with it."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from automl.engine.attempt import checked, outcome_of
from automl.engine.failures import failure, free_memory, is_device_loss
from automl.engine.loop import MICRO_BATCHES
from automl.engine.seeding import seeded
from automl.errors import DeviceLostError, UsageError
from automl.ledger.queries import TrialView
from automl.plugin.protocols import Run
from automl.plugin.registry import Kind
from automl.plugin.report import Outcome, Reason, State
from automl.space.candidate import Candidate
from automl.study.parts import Parts, costs_of, lost_decisions, rebuild
from automl.study.study import Study, trial_seed
from automl.trial_code.boundary import TrialCode

_MEASURED = frozenset({"latency", "memory"})
"""Costs that differ from run to run."""
_TOLERANCES = (1e-3, 1e-2)
"""By default on CPUs alone, and where another device is involved."""


class Verdict(Enum):
    """How a metric compares with the one that is stored."""

    EQUAL = "equal"
    WITHIN = "within the tolerance"
    MEASURED = "measured again"
    DIFFERS = "differs"


@dataclass(frozen=True)
class Compared:
    """A metric as it is stored, and as it was found again; None where it is no finite number."""

    metric: str
    stored: float | None
    again: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Rerun:
    """How training a trial again ended, and what that says metric by metric."""

    outcome: Outcome
    metrics: tuple[Compared, ...]

    @property
    def differing(self) -> list[str]:
        """The metrics that do not agree."""
        return [each.metric for each in self.metrics if each.verdict is Verdict.DIFFERS]

    @property
    def agrees(self) -> bool:
        return self.outcome.state is State.COMPLETE and not self.differing


def origin(study: Study, number: int) -> tuple[Study, TrialView]:
    """The trial that was trained for a trial's result: itself, unless it was reused.

    Raises:
        UsageError: there is no such trial, it did not complete, or its origin is gone.
    """
    view = study.trial(number)
    if view.state is not State.COMPLETE:
        state = view.state.value if view.state else "under way"
        raise UsageError(
            f"trial {number} of study {study.name!r} is {state}: only complete trials can be rerun"
        )
    if view.reused_from is None:
        return study, view
    return origin(study.with_uuid(view.reused_study), view.reused_from)


def tolerance_for(*devices: str | None) -> float:
    """How far metrics may lie apart, in shares, because devices round.

    Sums of another order, as by other threads, differ in their last bits, and training lets that
    grow. Accelerators add in no fixed order, and by default in half precision.
    """
    return _TOLERANCES[any(device != "cpu" for device in devices)]


def rerun(study: Study, parts: Parts, view: TrialView, device: str, tolerance: float) -> Rerun:
    """Train a trial of a study again, with the seeds that it had; the study stays as it is.

    device: what torch calls it.

    Raises:
        DeviceLostError: the device fails for good.
        UsageError: the database has not all of its decisions.
    """
    judging = parts.judge if view.judges is not None and parts.judge else parts
    outcome = _Training(study, judging, view.number, device).outcome()
    measured = _MEASURED | {study.spec.cost_metric}
    again = outcome.finite_metrics()
    metrics = [
        _compared(name, view.metrics, again, measured, tolerance)
        for name in {**view.metrics, **again}
    ]
    return Rerun(outcome, tuple(metrics))


@dataclass(frozen=True)
class _Training:
    """One trial in training as the engine trains it, but for its lease, reports and pruner."""

    study: Study
    parts: Parts
    number: int
    device: str

    def outcome(self) -> Outcome:
        decisions = self.study.decisions(self.number)
        if lost := lost_decisions(self.parts, decisions, self.number):
            raise UsageError(
                f"trial {self.number} of study {self.study.name!r} cannot be trained again: its "
                f"decision {', '.join(map(repr, lost))} is not in {self.study.storage.masked}, "
                "which may have taken it for another's name, or its space has changed"
            )
        try:
            with seeded(self._seed("propose")), TrialCode():
                candidate = rebuild(self.parts, decisions, self.number)
                costs = costs_of(self.parts, candidate)
        except Exception as error:
            return failure(error, f"space {self.parts.names[Kind.SPACE]}")
        with tempfile.TemporaryDirectory() as folder:
            run = Run(self.device, self._seed("train"), self.number, 1, Path(folder))
            outcome = self._attempt(candidate, costs, run)
            if outcome.reason is Reason.OUT_OF_MEMORY:
                run = replace(run, micro_batches=MICRO_BATCHES)
                outcome = self._attempt(candidate, costs, run)
        return outcome

    def _attempt(self, candidate: Candidate, costs: Mapping[str, float], run: Run) -> Outcome:
        """Train once; what goes wrong is the outcome, unless the device does."""
        try:
            with seeded(run.seed), TrialCode():
                return self._train(candidate, costs, run)
        except DeviceLostError:
            raise
        except Exception as error:
            if is_device_loss(error):
                raise DeviceLostError(f"the device was lost: {error}") from error
            outcome = failure(error, f"trainer {self.parts.names[Kind.TRAINER]}")
            free_memory(error)
            return outcome

    def _train(self, candidate: Candidate, costs: Mapping[str, float], run: Run) -> Outcome:
        last: Outcome | None = None
        for report in self.parts.trainer.train(candidate, self.parts.task, run):
            found = checked(report, candidate.open_decisions)
            last = outcome_of(found, last, costs, self.study.objectives)
        return last or Outcome(State.FAILED, message="its trainer reported nothing")

    def _seed(self, use: str) -> int:
        return trial_seed(self.study.spec, self.number, use)


def _compared(
    name: str,
    stored: Mapping[str, float | None],
    again: Mapping[str, float | None],
    measured: frozenset[str],
    tolerance: float,
) -> Compared:
    one, other = stored.get(name), again.get(name)
    verdict = Verdict.DIFFERS
    if name in stored and name in again and one == other:
        verdict = Verdict.EQUAL
    elif one is not None and other is not None:
        # Of a metric below 1, such as an accuracy, the share of 1: near 0 it means nothing.
        if name in measured:
            verdict = Verdict.MEASURED
        elif math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance):
            verdict = Verdict.WITHIN
    return Compared(name, one, other, verdict)
