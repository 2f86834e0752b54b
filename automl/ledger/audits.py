"""Audits: how often a trial was served the result of a different function.

An audit evaluates a trial that would have been served a result. Repeated evaluations of equal
decisions show how far two results of one function differ by chance. A larger difference means that
the result was served wrongly.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from automl.ledger.models import EvaluationRow, EvaluationState, Role
from automl.ledger.transaction import reading

SIGNIFICANCE = 0.05
"""The probability that any merge is called false although all are correct."""

_EXACT = 1e-9
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a proportion, both from 0 to 1."""

    low: float
    high: float


@dataclass(frozen=True)
class AuditReport:
    """The findings of a study's audits in one metric.

    The noise is unknown, and with it what depends on it, if no decisions were evaluated twice.

    Attributes:
        metric: The metric's name.
        n: How many audits ended with a result.
        merges: How many of these were served the result of other decisions.
        mean_difference: The mean of |audited - served| over the merges.
        noise: The standard deviation of evaluations of equal decisions.
        degrees: The degrees of freedom of the noise.
        false: How many merges the noise does not explain.
        rate: The proportion of false merges.
        interval: The 95 % Wilson interval of the rate.
    """

    metric: str
    n: int
    merges: int
    mean_difference: float | None
    noise: float | None
    degrees: int
    false: int | None
    rate: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Audits:
    """The audits of one study, read-only."""

    engine: Engine
    study: str

    @reading
    def report(self, session: Session, metric: str) -> AuditReport:
        """Return what the audits found in a metric.

        A merge is false if Student's t-test rejects that both results are of one function. The
        test compares |audited - served| with the pooled variance of evaluations of equal
        decisions, at a level divided by the number of merges (Bonferroni).
        """
        rows = session.scalars(
            select(EvaluationRow)
            .where(
                EvaluationRow.study == self.study,
                EvaluationRow.state == EvaluationState.COMPLETE,
                EvaluationRow.role != Role.OWN,
            )
            .order_by(EvaluationRow.id)
        ).all()
        found = [row for row in rows if _number(row.metrics, metric) is not None]
        audits = [audit for row in found if (audit := _audit(row, metric)) is not None]
        variance, degrees = _noise(found, metric)
        return _report(metric, audits, variance, degrees)


@dataclass(frozen=True)
class _Audit:
    """One audit.

    Attributes:
        difference: |audited - served|.
        n: How many evaluations the served result was the mean of.
        merged: Whether the served result was of other decisions.
        scale: |served|.
    """

    difference: float
    n: int
    merged: bool
    scale: float


def _audit(row: EvaluationRow, metric: str) -> _Audit | None:
    served = row.served or {}
    expected, got = _number(served.get("metrics"), metric), _number(row.metrics, metric)
    if row.role is not Role.AUDIT or expected is None or got is None:
        return None
    return _Audit(abs(got - expected), int(served["n"]), bool(served["merged"]), abs(expected))


def _number(metrics: Mapping[str, Any] | None, name: str) -> float | None:
    value = (metrics or {}).get(name)
    return None if value is None else float(value)


def _noise(rows: Sequence[EvaluationRow], metric: str) -> tuple[float, int]:
    """Return the pooled variance of evaluations of equal decisions, and its degrees of freedom."""
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        number = _number(row.metrics, metric)
        if row.decisions is not None and number is not None:
            groups[row.decisions].append(number)
    several = [group for group in groups.values() if len(group) > 1]
    degrees = sum(len(group) - 1 for group in several)
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in several)
    return (squares / degrees if degrees else 0.0), degrees


def _report(metric: str, audits: Sequence[_Audit], variance: float, degrees: int) -> AuditReport:
    merges = [audit for audit in audits if audit.merged]
    false = rate = interval = None
    if degrees and merges:
        level = SIGNIFICANCE / len(merges)
        false = sum(_is_false(audit, variance, degrees, level) for audit in merges)
        rate, interval = false / len(merges), wilson(false, len(merges))
    return AuditReport(
        metric=metric,
        n=len(audits),
        merges=len(merges),
        mean_difference=statistics.fmean(a.difference for a in merges) if merges else None,
        noise=math.sqrt(variance) if degrees else None,
        degrees=degrees,
        false=false,
        rate=rate,
        interval=interval,
    )


def _is_false(audit: _Audit, variance: float, degrees: int, level: float) -> bool:
    if audit.difference <= _EXACT * audit.scale:
        return False
    spread = math.sqrt(variance * (1 + 1 / audit.n))
    return spread == 0 or two_sided_p(audit.difference / spread, degrees) < level


def wilson(successes: int, n: int, confidence: float = _CONFIDENCE) -> Interval:
    """Return the score interval of a binomial proportion (E. B. Wilson, 1927).

    Args:
        successes: How many of the n trials succeeded.
        n: The number of trials, at least 1.
        confidence: The probability that the interval covers the true proportion.
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = successes / n, 1 + z * z / n
    center = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = center - half if successes else 0.0
    return Interval(low, center + half if successes < n else 1.0)


def two_sided_p(t: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t statistic."""
    from scipy.stats import t as student

    return float(2 * student.sf(t, degrees))
