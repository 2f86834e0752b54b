"""Tell tied weights apart in an order that does not depend on how a candidate is written.

Weights with the same key would get equal values, and a probe could not see anything that depends
on their difference: the maximum of two layers would equal their mean. So one of them at a time is
*singled out*, and the values that follow show which others differ from it. This is
individualisation and refinement, as for canonical forms of graphs, with forward and backward passes
as the refinement. Among tied weights, the one whose pass has the smallest signature is singled out;
weights with equal signatures are assumed to be interchangeable.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from automl.identity.probes.construction import Built, restored_tensors
from automl.identity.probes.forward_draws import Noise
from automl.identity.probes.forward_passes import RunningModules
from automl.identity.probes.interception import Interception
from automl.identity.probes.values import Values, tensors_in
from automl.identity.probes.weight_keys import Keyer, ties

MAX_PASSES = 64
"""Candidates that need more passes are too symmetric to be compared."""

# Gradients below this share of the largest are rounding noise.
_NOISE = 2.0**-36
_GENERIC = 12.9898


class TooSymmetricError(Exception):
    """Telling a candidate's tied weights apart takes too many passes."""


@dataclass(frozen=True)
class _Pass:
    """A pass with some draws singled out.

    Attributes:
        single: The draws that were singled out, with their marks.
        keys: The keys that the pass gave to draws.
        signature: Digests of the outputs, the gradients and the keys.
    """

    single: Mapping[int, int]
    keys: Mapping[int, int]
    signature: tuple[bytes, ...] = ()


def general_keys(
    build: Callable[[], Built], keys: Mapping[int, int], inputs: Callable[[], Any]
) -> tuple[Mapping[int, int], int]:
    """Find keys in general position: no two draws of a build have the same key.

    Args:
        build: Makes a build whose draws are tracked.
        keys: The keys found in a first pass, by the numbers of draws.
        inputs: Makes a batch.

    Returns:
        The keys by the numbers of draws, and the number of passes it took.

    Raises:
        TooSymmetricError: It would take more than `MAX_PASSES` passes.
    """
    if not ties(keys):
        return keys, 0
    refinement = _Refinement(build(), inputs)
    dead = refinement.dead(keys)
    found, spent = _Pass({}, keys), 1
    while groups := _live(ties(found.keys), dead):
        group = max(groups, key=lambda group: (refinement.size(group), found.keys[group[0]]))
        spent += len(group)
        if spent > MAX_PASSES:
            raise TooSymmetricError
        passes = [refinement.single_out(found.single, number) for number in group]
        found = min(passes, key=lambda each: each.signature)
    if not ties(found.keys):
        return found.keys, spent
    # Draws without effect need distinct keys too, but any will do.
    apart = {number: -number - 1 for number in dead & found.keys.keys()}
    found = refinement.passed({**found.single, **apart})
    if ties(found.keys):
        raise TooSymmetricError
    return found.keys, spent + 1


def _live(groups: Sequence[Sequence[int]], dead: Set[int]) -> list[list[int]]:
    """The groups without draws that have no effect, if at least two draws are left."""
    live = ([number for number in group if number not in dead] for group in groups)
    return [group for group in live if len(group) > 1]


@dataclass(frozen=True)
class _Refinement:
    """Runs passes of one build with some of its draws singled out."""

    built: Built
    inputs: Callable[[], Any]

    def size(self, group: Sequence[int]) -> int:
        """The size of the largest tensor that a draw reached, to treat a matrix before its bias."""
        return self.built.draws.sizes[group[0]]

    def single_out(self, single: Mapping[int, int], number: int) -> _Pass:
        """Run a pass with one more draw singled out."""
        return self.passed({**single, number: len(single) + 1})

    def passed(self, single: Mapping[int, int]) -> _Pass:
        """Run a forward and a backward pass with these draws singled out."""
        with restored_tensors(self.built.module):
            keys, outputs, gradients = self._run(single)
            values = Values()
            seen = (values.of(*outputs), values.of(*_moments(list(gradients.values()))))
        return _Pass(single, keys, (*seen, repr(sorted(keys.values())).encode()))

    def dead(self, keys: Mapping[int, int]) -> frozenset[int]:
        """The draws without effect on any output when all weights differ."""
        apart = {number: -number - 1 for number in keys}
        live: set[int] = set()
        reached: set[int] = set()
        for train in (True, False):
            with restored_tensors(self.built.module):
                gradients = self._run(apart, train)[2]
            largest = max((float(g.abs().max()) for g in gradients.values()), default=0.0)
            for parameter in self.built.module.parameters():
                numbers = self.built.draws.of(parameter)
                gradient = gradients.get(parameter)
                reached |= numbers
                if gradient is not None and gradient.abs().max() > _NOISE * largest:
                    live |= numbers
        return self._without_effect(apart, frozenset(reached - live))

    def _without_effect(self, apart: Mapping[int, int], some: frozenset[int]) -> frozenset[int]:
        """The given draws without effect on any output, even one that has no gradient."""
        if not some or self._outputs(apart) == self._outputs(self._moved(apart, some)):
            return some
        before = self._outputs(apart)
        return frozenset(
            number for number in some if self._outputs(self._moved(apart, {number})) == before
        )

    def _moved(self, apart: Mapping[int, int], some: Set[int]) -> dict[int, int]:
        return {n: mark - len(apart) * (n in some) for n, mark in apart.items()}

    def _outputs(self, single: Mapping[int, int]) -> list[bytes]:
        """Digests of the outputs in both modes."""
        found = []
        for train in (True, False):
            with restored_tensors(self.built.module):
                found.append(Values().of(*self._run(single, train)[1]))
        return found

    def _run(
        self, single: Mapping[int, int], train: bool = True
    ) -> tuple[Mapping[int, int], list[Tensor], Mapping[Tensor, Tensor]]:
        """The keys, the outputs and the gradients of one pass."""
        module, inputs = self.built.module, self.inputs()
        with RunningModules() as running:
            keyer = Keyer(self.built.draws, inputs, running, single)
            with Interception(keyer, Noise(1, running)), torch.enable_grad():
                outputs = tensors_in(module.train(train)(inputs))
        return keyer.keys, outputs, gradients_of(outputs, list(module.parameters()))


def gradients_of(outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """The gradients of a generic function of the outputs.

    Args:
        outputs: The outputs of a module.
        parameters: The parameters of the module.

    Returns:
        The gradients by parameter; empty if the outputs are not differentiable.
    """
    differentiable = [each for each in outputs if each.requires_grad]
    wanted = [each for each in parameters if each.requires_grad]
    if not differentiable or not wanted:
        return {}
    # Not random numbers, because random draws of the module are intercepted meanwhile.
    cotangents = [
        torch.arange(1, each.numel() + 1, dtype=each.dtype).mul(_GENERIC).sin().reshape(each.shape)
        for each in differentiable
    ]
    try:
        found = torch.autograd.grad(differentiable, wanted, cotangents, allow_unused=True)
    except RuntimeError:  # some operations have no derivative
        return {}
    pairs = zip(wanted, found, strict=True)
    return {parameter: gradient for parameter, gradient in pairs if gradient is not None}


def _moments(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Sums that do not depend on the order of the gradients."""
    if not gradients:
        return []
    squares = torch.cat([each.reshape(-1) for each in gradients]) ** 2
    return [squares.sum(), (squares**2).sum()]
