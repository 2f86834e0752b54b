"""The values that change from step to step."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

Value = float | Tensor


@dataclass(frozen=True)
class Values:
    """What differs from the settings in one step of a training.

    Attributes:
        settings: Values of settings, by name: a number or a scalar; `label_smoothing` may have one
            value for each example of the batch, and `l2` one for each parameter tensor or weight.
        decisions: Values of decisions that layers of the module hold open, by name: a number, a
            scalar, or one value for each example of the batch.
        example_weights: The weight of each example of the batch in the loss; None weights all
            examples by 1.
    """

    settings: Mapping[str, Value] = field(default_factory=dict)
    decisions: Mapping[str, Value] = field(default_factory=dict)
    example_weights: Tensor | None = None

    def at(self, positions: Tensor) -> "Values":
        """Return the values for other examples of the batch, given their positions in it."""
        settings = dict(self.settings)
        smoothing, weights = settings.get("label_smoothing"), self.example_weights
        if isinstance(smoothing, Tensor) and smoothing.dim():
            settings["label_smoothing"] = smoothing[positions]
        return replace(
            self,
            settings=settings,
            example_weights=None if weights is None else weights[positions],
        )


SETTINGS = Values()
"""Nothing differs from the settings."""
