"""Estimate how long a probe takes, from a candidate's size and from earlier probes."""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_REMEMBERED = 64
_BASE = 0.02
_PER_FLOP = 2.5e-9
_PER_PARAMETER = 2.5e-7
"""Seconds of a probe on one core in double precision, for about thirty forward passes of a batch
and a dozen passes over all weights. Accurate within a factor of two on perceptrons of 0.4 to 18
million parameters and on convolutional networks up to a ResNet-18."""


@dataclass
class ProbeTimes:
    """Estimates the time of the next probe from earlier ones, in proportion to size.

    Attributes:
        examples: The number of examples in the probe's batch.
    """

    examples: int
    _ratios: "deque[float]" = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def expected(self, costs: Mapping[str, float]) -> float:
        """The expected time of a probe in seconds.

        Args:
            costs: The candidate's `flops` (per example) and `parameters`.
        """
        return self._by_size(costs) * (statistics.fmean(self._ratios) if self._ratios else 1.0)

    def observe(self, costs: Mapping[str, float], seconds: float) -> None:
        """Learn from the time that a probe took, in seconds."""
        self._ratios.append(seconds / self._by_size(costs))

    def forget(self) -> None:
        """Estimate by size alone again: earlier probes may have run on a busy machine."""
        self._ratios.clear()

    def _by_size(self, costs: Mapping[str, float]) -> float:
        flops = self.examples * costs.get("flops", 0.0)
        return _BASE + _PER_FLOP * flops + _PER_PARAMETER * costs.get("parameters", 0.0)
