"""Reports of trainers: checks them, converts them to plain values, and makes outcomes of them."""

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from automl.errors import TrialError, UnstorableError
from automl.plugin.report import Objective, Outcome, Report, State, objective_values
from automl.space.decisions import Open, values_of
from automl.space.distributions import contains
from automl.storable import by_metric_name, short, size_fault, value_fault

_LONGEST_REPORT = 1_000_000
"""The largest number of bytes of a report's metrics: servers limit the size of a message."""


def outcome_of(
    report: Report,
    last: Outcome | None,
    costs: Mapping[str, float],
    objectives: tuple[Objective, ...],
) -> Outcome:
    """Return the outcome of a trial that ends with this report.

    Args:
        report: The latest report.
        last: The outcome after the report before; None for the first.
        costs: The candidate's own costs, which are added to the metrics.
        objectives: The objectives that the report must contain.

    Raises:
        TrialError: The step does not increase, or an objective is missing.
    """
    if last is not None and last.step is not None and report.step <= last.step:
        raise TrialError(f"reports must count up: step {report.step} after {last.step}")
    metrics = {**costs, **report.metrics}
    values = objective_values(replace(report, metrics=metrics), objectives)
    return Outcome(State.COMPLETE, values, metrics, report.step, report.closed)


def checked(report: Report, open_decisions: Mapping[str, Open]) -> Report:
    """Return a report in plain Python values that every supported database can store.

    Args:
        report: The report as the trainer yielded it.
        open_decisions: The decisions that the trainer may close.

    Raises:
        TrialError: A step or a metric is not a number, two metrics have one name, or a decision is
            closed with a value that it cannot have.
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


def _named(field: str, given: object) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise TrialError(f"a report's {field} must be values by name, got {short(given)}")
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
    if not contains(distribution, plain):
        raise TrialError(
            f"the trainer closed {name!r} with {short(value)}, expected {values_of(distribution)}"
        )
    if (fault := value_fault(plain)) is not None:
        raise UnstorableError(f"the value of {name!r} cannot be stored: {fault}")
    return plain
