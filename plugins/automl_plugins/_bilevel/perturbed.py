"""Open decisions as unconstrained hyperparameters, perturbed while a network learns to respond.

Source: M. MacKay, P. Vicol, J. Lorraine, D. Duvenaud, R. Grosse: Self-Tuning Networks, arXiv
1903.03088, section 3.3.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from automl import Candidate, Open, Scope, Unconstrained, UseKind
from automl.nn import open_in
from automl_plugins._training.values import Values

_LEAST_SCALE = 0.01
"""The smallest standard deviation of a perturbation: without any, no response can be learnt."""


class Perturbed:
    """The hyperparameters of a candidate's open decisions, one for each, and their perturbation.

    Attributes:
        names: The decisions' names, in the order of the hyperparameters.
        phi: The hyperparameters h [size]; 0 is the middle of a decision's range.
        raw_scales: The standard deviations of the perturbations [size], before softplus.
    """

    def __init__(
        self,
        candidate: Candidate,
        module: nn.Module,
        device: torch.device,
        scale: float,
        most: float,
    ) -> None:
        opened = candidate.open_decisions
        self.names = list(opened)
        self._maps = [Unconstrained(decision.distribution) for decision in opened.values()]
        self._own = torch.tensor([_by_example(each) for each in opened.values()])
        self._own_outside = torch.tensor(
            [_by_example(each, outer=True) for each in opened.values()]
        )
        self._smooth = [_smooth(decision) for decision in opened.values()]
        self._settings = {
            key: value
            for key, value in candidate.hyperparameters.items()
            if isinstance(value, Open)
        }
        self._in_layers = open_in(module).keys()
        self._raw_bounds = _before_softplus(_LEAST_SCALE), _before_softplus(most)
        raw = torch.full((len(opened),), _before_softplus(scale), device=device)
        self.phi = torch.zeros(len(opened), device=device).requires_grad_()
        self.raw_scales = raw.requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """What the outer loss trains."""
        return [self.phi, self.raw_scales]

    def scales(self) -> Tensor:
        """Return the standard deviations of the perturbations [size]."""
        return softplus(self.raw_scales)

    def bound(self) -> None:
        """Keep the standard deviations in their bounds; call it after each step."""
        with torch.no_grad():
            self.raw_scales.clamp_(*self._raw_bounds)

    def entropy(self) -> Tensor:
        """Return the entropy of the perturbations, in nats."""
        return (self.scales().log() + math.log(math.sqrt(2 * math.pi * math.e))).sum()

    def draw(self, examples: int, generator: torch.Generator, outer: bool = False) -> Tensor:
        """Draw perturbed hyperparameters, with a gradient.

        Args:
            examples: The number of examples in the batch.
            generator: Draws on the CPU, so that all devices get the same.
            outer: Whether they are for the outer loss.

        Returns:
            Shape [examples, size], where the columns of decisions that cannot differ between
            examples are constant; or [size] if no decision can.
        """
        noise = torch.randn(len(self.names), generator=generator)
        mask = self._own_outside if outer else self._own
        if mask.any():
            own = torch.randn(examples, len(self.names), generator=generator)
            noise = torch.where(mask, own, noise)
        return self.phi + self.scales() * noise.to(self.phi)

    def values(self, hyper: Tensor, outer: bool = False) -> Values:
        """Return the values of settings and of decisions in layers.

        Args:
            hyper: The hyperparameters, [size] or [examples, size].
            outer: Whether they are for the outer loss: values with a useful derivative keep it.
        """
        at: dict[str, Tensor] = {}
        own = self._own_outside if outer else self._own
        for index, name in enumerate(self.names):
            column = hyper[..., index]
            if column.dim() and not own[index]:
                column = column[0]
            kept = outer and self._smooth[index]
            at[name] = self._maps[index].value(column if kept else column.detach())
        settings = {key: each.value(at[each.name]) for key, each in self._settings.items()}
        return Values(settings, {name: at[name] for name in self.names if name in self._in_layers})

    def copy(self) -> Tensor:
        """Return the hyperparameters as they are now."""
        return self.phi.detach().clone()

    def closed(self, phi: Tensor) -> dict[str, float | int]:
        """Return a plain value for each decision."""
        return {
            name: each.close(value)
            for name, each, value in zip(self.names, self._maps, phi, strict=True)
        }

    def state(self) -> dict[str, Any]:
        """Return what `load` needs."""
        return {"phi": self.copy(), "raw_scales": self.raw_scales.detach().clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        with torch.no_grad():
            self.phi.copy_(state["phi"])
            self.raw_scales.copy_(state["raw_scales"])


def _by_example(decision: Open, outer: bool = False) -> bool:
    """Return whether each example can have its own value.

    The outer loss has no terms that depend on hyperparameters, so there only layers count. Examples
    with values of their own give a gradient with much less noise.
    """
    return all(
        use.scope is Scope.SAMPLE or (outer and use.kind is UseKind.HYPERPARAMETER)
        for use in decision.uses
    )


def _smooth(decision: Open) -> bool:
    return all(use.differentiable for use in decision.uses)


def _before_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value))
