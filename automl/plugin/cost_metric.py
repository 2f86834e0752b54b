"""What counts as a trial's cost: its time, a metric, or a weighted sum of metrics."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from automl.errors import TrialError, UsageError
from automl.plugin.report import COUNTS

_EXAMPLE = "inner_gradients+1.1*hessian_vector_products"
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"\s*(?:({_NUMBER})\s*\*\s*)?([A-Za-z_][\w.-]*)\s*")


@dataclass(frozen=True)
class CostMetric:
    """A sum of reported metrics, each with a weight.

    Attributes:
        weights: The weight of each metric.
    """

    weights: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> "CostMetric":
        """Read a metric's name, or a sum such as `inner_gradients+1.1*hessian_vector_products`.

        Raises:
            UsageError: The text has another form, names a metric twice, or gives a weight that is
                not positive and finite.
        """
        if "+" not in text and "*" not in text:
            return cls({text: 1.0})
        weights: dict[str, float] = {}
        place = 0
        while match := _TERM.match(text, place):
            number, name = float(match[1] or 1.0), match[2]
            if name in weights:
                raise _wrong(text, f"{name} is named twice")
            if not 0 < number < math.inf:
                raise _wrong(text, f"the weight of {name} must be positive and finite")
            weights[name], place = number, match.end()
            if place == len(text):
                return cls(weights)
            if text[place] != "+":
                break
            place += 1
        rest = text[place:].strip()
        raise _wrong(text, f"cannot read {rest!r}" if rest else "it ends with a sign")

    def of(self, metrics: Mapping[str, float]) -> float:
        """Return the cost that a report states.

        Trainers leave out counts of what they never do, so these are zero if another term is there.

        Raises:
            TrialError: A metric is missing, or the sum is not a finite number of at least 0.
        """
        named = [name for name in self.weights if name in metrics]
        missing = [name for name in self.weights if name not in metrics and name not in COUNTS]
        if missing or not named:
            lacking = missing or list(self.weights)
            known = ", ".join(metrics)
            raise TrialError(
                f"the report has no cost {', '.join(map(repr, lacking))}; its metrics: {known}"
            )
        cost = sum(self.weights[name] * metrics[name] for name in named)
        if not 0 <= cost < math.inf:
            raise TrialError(f"the cost {self} must be seconds, at least 0, got {cost}")
        return cost

    def __str__(self) -> str:
        terms = [n if w == 1 else f"{w:.15g}*{n}" for n, w in self.weights.items()]
        return "+".join(terms) if terms[1:] or "*" in terms[0] else repr(terms[0])


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(
        f"--cost-metric: expected a metric or a weighted sum such as {_EXAMPLE}, got {text!r}: "
        f"{why}"
    )
