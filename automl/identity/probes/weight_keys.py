"""Keys of random weights by what is computed with them, not by names or by order.

A draw's key follows from the first operation that its weights enter and from the values that
reach that operation, found in one forward pass. Layers of one kind, shape and input get equal
keys: they are *tied*, and `symmetry` sets them apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from automl.identity.probes.construction import Draws, address
from automl.identity.probes.forward_passes import Running
from automl.identity.probes.interception import Call
from automl.identity.probes.values import Values, scalars, seed_of, tensors_in

_SYMMETRIC = ("add", "add_", "mul", "mul_")
_UNREAD = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like")
_GENERATOR = torch.Generator()


class Keyer:
    """Handles the operations of one pass: gives each draw a key, and weights values by it.

    The weights are changed in place.

    Args:
        single: draws to set apart from those tied with them, each with a mark of its own.
    """

    def __init__(
        self, draws: Draws, inputs: Any, running: Running, single: Mapping[int, int]
    ) -> None:
        self.keys: dict[int, int] = {}
        self._draws, self._running, self._single = draws, running, single
        self._waiting = dict(draws.reached)
        self._values = Values()
        # Tensors that follow from the inputs, kept alive so that no other gets their address.
        self._data = {address(tensor): tensor for tensor in tensors_in(inputs)}

    def handle(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Key the draws whose weights an operation reads first."""
        given = tensors_in((args, kwargs))
        reads = not func.is_view and func._opname not in _UNREAD
        if reads and self._waiting and any(address(each) in self._waiting for each in given):
            self._reach(func, args, kwargs, given)
        result = call(func, args, kwargs)
        if not func.is_view and any(address(each) in self._data for each in given):
            self._data.update((address(each), each) for each in tensors_in(result))
        return result

    def _reach(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> None:
        """Key the draws of all weights that enter an operation, matrices before vectors."""
        if func._opname == "addmm" and not kwargs:
            # One operation or two, a product and a sum, is a way of writing.
            bias, *factors = args
            self._key(factors, "mm", "")
            if address(bias) in self._waiting:
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
        waiting = [n for n, each in enumerate(given) if address(each) in self._waiting]
        if not waiting:
            return
        data = [n for n, each in enumerate(given) if address(each) in self._data]
        met = data or [n for n in range(len(given)) if n not in waiting]
        values = sorted((0 if symmetric else n, self._values.of(given[n])) for n in met)
        reached: list[object] = [name, settings, values]
        if not data:
            # Weights that meet nothing but weights: what their module was given places them.
            reached.append(self._values.of(*self._running.arguments()))
        for n in sorted(waiting, key=lambda n: (-given[n].dim(), n)):
            at = address(given[n])
            if at in self._waiting:
                numbers = self._waiting.pop(at)
                self._give(numbers, seed_of(0 if symmetric else n, *reached))
                own = seed_of(*sorted(self.keys[number] for number in numbers))
                _scatter(given[n], own)
                reached.append(own)

    def _give(self, numbers: frozenset[int], key: int) -> None:
        """Give these draws keys; those that have some keep it, as weights made as copies do."""
        for rank, number in enumerate(sorted(numbers)):
            if number not in self.keys:
                event = self._draws.events[number]
                mark = self._single.get(number, 0)
                self.keys[number] = seed_of(b"key", key, rank, event, mark)


def ties(keys: Mapping[int, int]) -> list[list[int]]:
    """The numbers of draws that have one key, for each key that several have."""
    groups: dict[int, list[int]] = {}
    for number, key in keys.items():
        groups.setdefault(key, []).append(number)
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]


@torch.no_grad()
def _scatter(tensor: Tensor, seed: int) -> None:
    """Multiply all elements in a tensor's memory by random factors, in place."""
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    if memory.is_floating_point():
        factors = torch.rand(
            len(memory), generator=_GENERATOR.manual_seed(seed), dtype=torch.float64
        )
        memory.mul_(0.5 + factors)
