"""Schedules: values that change while a training goes on."""

import math
from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """A value that changes during training, constant between given shares of its steps.

    A share, not a step, so that a longer training can follow the same schedule.

    Attributes:
        shares: The share of all steps from which each value holds: 0 first, increasing, below 1.
        values: The values, as many as shares.

    Raises:
        ValueError: The shares or the values do not have this form.
    """

    shares: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(map(float, self.shares)))
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        pairs = zip(self.shares, self.shares[1:], strict=False)
        ordered = self.shares[:1] == (0.0,) and all(a < b for a, b in pairs)
        if not ordered or self.shares[-1] >= 1 or len(self.shares) != len(self.values):
            raise ValueError(
                "a schedule needs as many values as shares, and shares that start at 0, increase "
                f"and stay below 1; got {len(self.values)} values and shares {self.shares[:8]}"
            )
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"a schedule's values must be finite, got {self.values[:8]}")

    def at(self, share: float) -> float:
        """Return the value at a share of all steps, from 0 to 1."""
        return self.values[max(bisect_right(self.shares, share) - 1, 0)]
