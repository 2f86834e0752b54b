"""The layers that can hold an open decision; use them where a plain torch.nn layer cannot."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from torch import Tensor, nn

from automl.errors import OpenDecisionError
from automl.space.decisions import Open


def centre(distribution: BaseDistribution) -> float:
    """Return the middle of a numeric distribution: the geometric mean of its bounds if logarithmic.

    Raises:
        OpenDecisionError: The distribution is categorical, so it has no middle.
    """
    if isinstance(distribution, CategoricalDistribution):
        raise OpenDecisionError(f"a categorical decision has no middle value: {distribution}")
    low, high = float(distribution.low), float(distribution.high)  # type: ignore[attr-defined]
    if distribution.log:  # type: ignore[attr-defined]
        return math.sqrt(low * high)
    return (low + high) / 2


class OpenLayer(nn.Module):
    """A layer that may hold open decisions; a trainer finds it and assigns their values.

    Attributes:
        open_decisions: The open decisions, by the attribute that holds the value.
    """

    open_decisions: dict[str, Open]

    def __init__(self) -> None:
        super().__init__()
        self.open_decisions = {}

    def hold(self, attribute: str, value: float | Open) -> None:
        """Set an attribute to a plain value, or to the middle of an open decision's distribution.

        Args:
            attribute: The attribute's name.
            value: A number, or an open numeric decision.
        """
        if isinstance(value, Open):
            self.open_decisions[attribute] = value
            value = centre(value.distribution)
        setattr(self, attribute, value)

    def assign(self, decision: str, value: float | Tensor) -> None:
        """Set the value of an open decision for the forward passes that follow.

        Args:
            decision: The decision's name.
            value: A number or a tensor; a tensor may carry gradients.

        Raises:
            OpenDecisionError: The layer holds no open decision of that name.
        """
        held = [key for key, item in self.open_decisions.items() if item.name == decision]
        if not held:
            raise OpenDecisionError(
                f"{type(self).__name__} holds no open decision {decision!r}; "
                f"it holds: {', '.join(o.name for o in self.open_decisions.values()) or 'none'}"
            )
        for attribute in held:
            setattr(self, attribute, value)


class Dropout(OpenLayer):
    """Inverted dropout whose rate may be an open decision.

    An assigned rate may be a number, a scalar tensor, or one rate per example (shape [batch]).
    """

    p: float | Tensor

    def __init__(self, p: float | Open = 0.5) -> None:
        super().__init__()
        held = p.distribution if isinstance(p, Open) else FloatDistribution(float(p), float(p))
        if not 0 <= getattr(held, "low", -1) <= getattr(held, "high", -1) < 1:
            raise ValueError(f"dropout rate must be in [0, 1), got {held}")
        self.hold("p", p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if not isinstance(self.p, Tensor):
            return nn.functional.dropout(x, self.p, training=True)
        rate = self.p.to(x)
        keep = 1 - rate.reshape(rate.shape + (1,) * (x.dim() - rate.dim()))
        return x * torch.bernoulli(keep.expand_as(x)) / keep

    def extra_repr(self) -> str:
        return f"p={self.open_decisions.get('p', self.p)!r}"


class Choice(OpenLayer):
    """An open choice between modules of equal output shape, computed as their weighted sum.

    Attributes:
        options: One module per choice, in the order of the distribution's choices.
        weights: One weight per option [options], uniform at first. A trainer assigns them: a
            softmax of logits, a one-hot draw, or a schedule.
    """

    weights: Tensor

    def __init__(self, decision: Open, options: Iterable[nn.Module]) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)
        if not isinstance(decision.distribution, CategoricalDistribution) or len(
            decision.distribution.choices
        ) != len(self.options):
            raise OpenDecisionError(
                f"decision {decision.name!r} needs one module for each of its choices"
            )
        self.open_decisions["weights"] = decision
        self.weights = torch.full((len(self.options),), 1 / len(self.options))

    def forward(self, *inputs: Tensor) -> Tensor:
        terms = [
            w.to(inputs[0]) * option(*inputs)
            for w, option in zip(self.weights, self.options, strict=True)
        ]
        return torch.stack(terms).sum(0)


def open_layers(module: nn.Module) -> Mapping[str, list[OpenLayer]]:
    """Return the layers that hold open decisions, by decision name."""
    found: dict[str, list[OpenLayer]] = {}
    for layer in module.modules():
        if isinstance(layer, OpenLayer):
            for decision in layer.open_decisions.values():
                found.setdefault(decision.name, []).append(layer)
    return found


def open_in(module: nn.Module) -> dict[str, Any]:
    """Return the open decisions that a module's layers hold, by name."""
    return {
        decision.name: decision
        for layer in module.modules()
        if isinstance(layer, OpenLayer)
        for decision in layer.open_decisions.values()
    }
