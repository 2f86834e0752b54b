"""The layers that can hold an open decision; use them where a plain torch.nn layer cannot."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from torch import Tensor, nn
from torch.autograd import forward_ad

from automl.errors import OpenDecisionError
from automl.space.decisions import Open
from automl.space.uses import Openable, Scope, Use, UseKind


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
        openable: What a trainer may do with each attribute that may hold an open decision.
        open_decisions: The open decisions, by the attribute that holds the value.
    """

    openable: ClassVar[Mapping[str, Openable]] = {}
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
            value = value.value(centre(value.distribution))
        setattr(self, attribute, value)


@contextmanager
def assigned(module: nn.Module, values: Mapping[str, Any]) -> Iterator[None]:
    """Set the values of open decisions in all layers of a module, and restore them at the end.

    It also works while `torch.func` transforms a function that calls the module.

    Args:
        module: The module whose layers hold the decisions.
        values: A number or a tensor by decision. A tensor may carry gradients and have leading axes
            that the layer understands, such as one value for each example [batch].

    Raises:
        OpenDecisionError: No layer holds a decision of that name.
    """
    layers = open_layers(module)
    before: list[tuple[OpenLayer, str, Any]] = []
    try:
        for name, value in values.items():
            for layer in _holding(layers, name):
                for attribute, decision in layer.open_decisions.items():
                    if decision.name == name:
                        before.append((layer, attribute, getattr(layer, attribute)))
                        _set(layer, attribute, decision.value(value))
        yield
    finally:
        for layer, attribute, value in reversed(before):
            _set(layer, attribute, value)


def _holding(layers: Mapping[str, list[OpenLayer]], name: str) -> list[OpenLayer]:
    if name not in layers:
        known = ", ".join(layers) or "none"
        raise OpenDecisionError(f"no layer holds an open decision {name!r}; they hold: {known}")
    return layers[name]


def _set(layer: OpenLayer, attribute: str, value: Any) -> None:
    # Module.__setattr__ would register a Parameter as one of the layer's own weights.
    object.__setattr__(layer, attribute, value)


class Dropout(OpenLayer):
    """Inverted dropout whose rate may be an open decision.

    An assigned rate may be a number, a scalar tensor, or one rate per example (shape [batch]). It
    has no useful gradient, so a rate that carries one is refused.
    """

    openable: ClassVar[Mapping[str, Openable]] = {"p": Openable(Scope.SAMPLE)}
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
        _refuse_gradient(self.p)
        rate = self.p.to(x)
        keep = 1 - rate.reshape(rate.shape + (1,) * (x.dim() - rate.dim()))
        return x * torch.bernoulli(keep.expand_as(x)) / keep

    def extra_repr(self) -> str:
        return f"p={self.open_decisions.get('p', self.p)!r}"


def _refuse_gradient(rate: Tensor) -> None:
    """Refuse a rate that carries a gradient.

    The mask is drawn with the rate, but has no derivative; the division by 1 - p alone gives, for a
    squared loss, twice the true gradient.

    Raises:
        OpenDecisionError: The rate carries a gradient.
    """
    tangent = forward_ad.unpack_dual(rate).tangent  # type: ignore[no-untyped-call]
    if torch.is_grad_enabled() and (rate.requires_grad or tangent is not None):
        raise OpenDecisionError(
            "dropout has no useful gradient with respect to its rate: detach the rate, and tune it "
            "by its effect on the weights"
        )


class Choice(OpenLayer):
    """An open choice between modules of equal output shape, computed as their weighted sum.

    Attributes:
        options: One module per choice, in the order of the distribution's choices.
        weights: One weight per option [options], uniform at first. A trainer assigns them: a
            softmax of logits, a one-hot draw, or a schedule.
    """

    openable: ClassVar[Mapping[str, Openable]] = {"weights": Openable(differentiable=True)}
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


def uses_in(module: nn.Module) -> Iterator[tuple[str, Use]]:
    """Iterate over the uses of open decisions in a module's layers, each after its decision."""
    for layer in module.modules():
        if isinstance(layer, OpenLayer):
            for key, decision in layer.open_decisions.items():
                openable = layer.openable.get(key, Openable())
                owner = type(layer).__name__
                yield (
                    decision.name,
                    Use(UseKind.LAYER, owner, key, openable.scope, openable.differentiable),
                )
