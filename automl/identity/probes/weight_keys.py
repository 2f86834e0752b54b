"""Keys of random weights that depend on how the weights are used, not on names or on order.

A forward pass finds the first operation that the weights of a draw enter and the values that reach
that operation; together they determine the key. Layers of one type and shape with the same input
get equal keys: they are *tied*, and `symmetry` tells them apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from automl.identity.probes.construction import Draws, address
from automl.identity.probes.forward_passes import RunningModules
from automl.identity.probes.interception import Call
from automl.identity.probes.values import Values, scalars, seed_of, tensors_in

_SYMMETRIC = ("add", "add_", "mul", "mul_")
_NOT_READING = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
_GENERATOR = torch.Generator()


class Keyer:
    """Gives each draw a key in the course of one pass, and scales its weights by that key.

    The weights are changed in place.

    Args:
        draws: The draws of the build and the memory that they reached.
        inputs: The batch of the pass.
        running: Tracks the modules that are in their forward pass.
        single: Draws to tell apart from those tied with them, each with its own mark.

    Attributes:
        keys: The keys found so far, by the numbers of draws.
    """

    def __init__(
        self, draws: Draws, inputs: Any, running: RunningModules, single: Mapping[int, int]
    ) -> None:
        self.keys: dict[int, int] = {}
        self._draws, self._running, self._single = draws, running, single
        self._unkeyed = dict(draws.reached)
        self._values = Values()
        # Tensors computed from the inputs, kept alive so that no other tensor gets their address.
        self._data = {address(tensor): tensor for tensor in tensors_in(inputs)}

    def handle(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Key the draws whose weights this operation is the first to read."""
        given = tensors_in((args, kwargs))
        reads = not func.is_view and func._opname not in _NOT_READING
        if reads and self._unkeyed and any(address(each) in self._unkeyed for each in given):
            self._key_weights(func, args, kwargs, given)
        result = call(func, args, kwargs)
        if not func.is_view and any(address(each) in self._data for each in given):
            self._data.update((address(each), each) for each in tensors_in(result))
        return result

    def _key_weights(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> None:
        """Key the draws of all weights that enter an operation, matrices before vectors."""
        if func._opname == "addmm" and not kwargs:
            # Treat it as a product and a sum, which other code may write as two operations.
            bias, *factors = args
            self._key(factors, "mm", "")
            if address(bias) in self._unkeyed:
                with torch.no_grad():
                    product = torch.mm(*factors)
                self._data[address(product)] = product
                self._key([bias, product], "add", "", symmetric=True)
            return
        name = func._opname.rstrip("_")
        self._key(given, name, scalars(args, kwargs), symmetric=func._opname in _SYMMETRIC)

    def _key(
        self, given: Sequence[Tensor], name: str, settings: str, symmetric: bool = False
    ) -> None:
        unkeyed = [n for n, each in enumerate(given) if address(each) in self._unkeyed]
        if not unkeyed:
            return
        data = [n for n, each in enumerate(given) if address(each) in self._data]
        met = data or [n for n in range(len(given)) if n not in unkeyed]
        values = sorted((0 if symmetric else n, self._values.of(given[n])) for n in met)
        reached: list[object] = [name, settings, values]
        if not data:
            # The weights meet only weights, so the arguments of their module identify them.
            reached.append(self._values.of(*self._running.arguments()))
        for n in sorted(unkeyed, key=lambda n: (-given[n].dim(), n)):
            at = address(given[n])
            if at in self._unkeyed:
                numbers = self._unkeyed.pop(at)
                self._assign(numbers, seed_of(0 if symmetric else n, *reached))
                own = seed_of(*sorted(self.keys[number] for number in numbers))
                _scatter(given[n], own)
                reached.append(own)

    def _assign(self, numbers: frozenset[int], key: int) -> None:
        """Give keys to these draws; draws that have one keep it, as for weights that are copies."""
        for rank, number in enumerate(sorted(numbers)):
            if number not in self.keys:
                event = self._draws.events[number]
                mark = self._single.get(number, 0)
                self.keys[number] = seed_of(b"key", key, rank, event, mark)


def ties(keys: Mapping[int, int]) -> list[list[int]]:
    """Group the numbers of draws by key, for each key that several draws share."""
    groups: dict[int, list[int]] = {}
    for number, key in keys.items():
        groups.setdefault(key, []).append(number)
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]


@torch.no_grad()
def _scatter(tensor: Tensor, seed: int) -> None:
    """Multiply all elements of a tensor's memory by random factors, in place."""
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    if memory.is_floating_point():
        factors = torch.rand(
            len(memory), generator=_GENERATOR.manual_seed(seed), dtype=torch.float64
        )
        memory.mul_(0.5 + factors)
