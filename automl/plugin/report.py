"""What a trainer tells the engine while it trains, and what the engine makes of it."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from automl.errors import NotFiniteError, TrialError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


COSTS = ("parameters", "flops", "latency", "memory")
"""Metrics that belong to one candidate alone; two that compute the same may differ in them."""
SHORT = {"params": "parameters"}
"""Metrics by a name that is shorter to type."""


class Direction(Enum):
    """Whether more or less of a metric is better; the words are Optuna's."""

    MAXIMIZE = "maximize"
    MINIMIZE = "minimize"


class State(Enum):
    """How a trial ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


class Reason(Enum):
    """Why a trial failed."""

    ERROR = "error"
    INVALID = "invalid-candidate"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_FINITE = "not-finite"
    TIME_LIMIT = "time-limit"
    WORKER_LOST = "worker-lost"


@dataclass(frozen=True)
class Objective:
    """A metric that the search optimises."""

    metric: str
    direction: Direction


@dataclass(frozen=True)
class Requirement:
    """A bound on a metric, kept to by all trials that may be best; at_least: from below.

    A bound on one of COSTS is looked at before a candidate is trained.
    """

    metric: str
    bound: float
    at_least: bool = False

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read `parameters<=1e6` or `accuracy>=0.9`.

        Raises:
            UsageError: it is none of these.
        """
        match = re.fullmatch(r"\s*([\w.-]+)\s*([<>]=)\s*(\S+)\s*", text)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            strict = re.fullmatch(r"\s*([\w.-]+)\s*([<>])\s*([\d.]\S*)\s*", text)
            meant = "{}{}={}".format(*strict.groups()) if strict else "parameters<=1e6"
            raise UsageError(f"--require: expected one such as {meant!r}, got {text!r}")
        return cls(match[1], bound, match[2] == ">=")

    def excess(self, metrics: Mapping[str, float | None]) -> float:
        """By how much metrics break it; zero or less where they keep to it."""
        value = metrics.get(self.metric)
        if value is None or math.isnan(value):
            return math.inf
        return self.bound - value if self.at_least else value - self.bound

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {self.bound:.15g}"


def constraint_key(requirement: Requirement) -> str:
    """The attribute of a trial by which Optuna knows how far it breaks a requirement."""
    return f"constraints:{requirement}"


def broken(
    requirements: Iterable[Requirement], metrics: Mapping[str, float | None]
) -> list[Requirement]:
    """The requirements that metrics do not keep to."""
    return [each for each in requirements if each.excess(metrics) > 0]


@dataclass(frozen=True)
class Report:
    """One step of training.

    step: counts from 1 and grows. metrics: plain numbers by name. outputs: one value or row per
    validation example, where the trainer offers them. closed: what the trainer decided for the
    decisions it left open. checkpoint: makes the state that `Run.restore` gives back; tensors,
    numbers, strings, lists and dicts only. weights: the model's parameters and buffers as they
    would be loaded to use it; asked for at the end of a trial that is among the best. Both are
    called at once or not at all.
    """

    step: int
    metrics: Mapping[str, float]
    outputs: "Tensor | None" = None
    closed: Mapping[str, Any] | None = None
    checkpoint: Callable[[], Mapping[str, Any]] | None = None
    weights: "Callable[[], Mapping[str, Tensor]] | None" = None


@dataclass(frozen=True)
class Outcome:
    """How a trial ended and what it measured; `message` is one line, `traceback` the rest."""

    state: State
    values: tuple[float, ...] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    closed: Mapping[str, Any] | None = None
    reason: Reason | None = None
    message: str | None = None
    traceback: str | None = None
    cause: str | None = None
    """Where a failure came from, equal for failures of one origin."""

    def finite_metrics(self) -> dict[str, float | None]:
        """The metrics as JSON can hold them: NaN and infinity become None."""
        return finite(self.metrics)


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON can hold them: NaN and infinity become None."""
    return {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}


def objective_values(report: Report, objectives: tuple[Objective, ...]) -> tuple[float, ...]:
    """The objectives' values in a report.

    Raises:
        TrialError: the report lacks an objective, or holds no finite number for it.
    """
    values = []
    for objective in objectives:
        if objective.metric not in report.metrics:
            raise TrialError(
                f"step {report.step} reports no {objective.metric!r}; "
                f"it reports: {', '.join(report.metrics) or 'nothing'}"
            )
        value = float(report.metrics[objective.metric])
        if not math.isfinite(value):
            raise NotFiniteError(f"{objective.metric} is {value} at step {report.step}")
        values.append(value)
    return tuple(values)
