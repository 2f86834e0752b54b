"""Build a candidate so that its random weights do not depend on how its code is written.

Weights from a single seeded generator depend on the order of construction, so two versions of one
function would get different weights. Here, each draw has its own seed. If the key of a draw is
known, the seed follows from it, and different keys give independent weights. Tensors made from one
draw (copies, negatives, transposes) stay related.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from automl.identity.probes.interception import Call, Interception
from automl.identity.probes.values import plain, seed_of, tensors_in

if TYPE_CHECKING:
    from automl.space.candidate import Candidate

INCONSISTENT = "the candidate builds different tensors each time"


class Slot(NamedTuple):
    """A tensor that a module holds.

    Attributes:
        module: The module itself, not one of its parents.
        name: The name of the parameter, buffer or attribute.
        tensor: The tensor.
    """

    module: nn.Module
    name: str
    tensor: Tensor


def slots(module: nn.Module) -> list[Slot]:
    """All tensors that a module and its parts hold: parameters, buffers and plain attributes."""
    return [
        Slot(part, name, tensor)
        for part in module.modules()
        for held in (part._parameters, part._buffers, own_attributes(part))
        for name, tensor in held.items()
        if tensor is not None and isinstance(tensor, Tensor) and not is_lazy(tensor)
    ]


def own_attributes(part: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module; empty for torch's own modules, which have none."""
    return {} if type(part).__module__.startswith("torch.nn.") else part.__dict__


@dataclass
class Draws:
    """The random draws of a build in order, and the memory that each of them reached.

    Attributes:
        events: The operation and the arguments of each draw.
        reached: For each address of memory, the numbers of the draws that determine its values.
        sizes: The number of elements of the largest tensor that each draw reached.
    """

    events: list[str] = field(default_factory=list)
    reached: dict[int, frozenset[int]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)

    def reach(self, tensor: Tensor, numbers: frozenset[int]) -> None:
        """Record that these draws alone determine the memory of a tensor from now on."""
        at = address(tensor)
        if numbers and at:
            self.reached[at] = numbers
            for number in numbers:
                self.sizes[number] = max(self.sizes.get(number, 0), tensor.numel())
            # Keep the memory alive, so that no other tensor gets its address.
            self._kept.append(tensor.untyped_storage())
        else:
            self.reached.pop(at, None)

    def of(self, tensor: Tensor) -> frozenset[int]:
        """The numbers of the draws that determine a tensor's memory."""
        return self.reached.get(address(tensor), frozenset())


@dataclass(frozen=True)
class Built:
    """A candidate that was built.

    Attributes:
        candidate: The candidate.
        module: Its module, in double precision.
        draws: The draws that made its weights.
        narrow: The types of its weights that were narrower than single precision.
        seeded: Whether it sets the state of torch's generator, so that draws may be equal.
    """

    candidate: "Candidate"
    module: nn.Module
    draws: Draws
    narrow: tuple[str, ...]
    seeded: bool


@dataclass(frozen=True)
class Builder:
    """Builds one candidate repeatedly.

    Attributes:
        propose: Makes the candidate.
        inputs: Makes a batch to pass through modules that make weights when first called.
        materialize: Whether to pass the batch even if the module does not declare this.
    """

    propose: "Callable[[], Candidate]"
    inputs: Callable[[], Any]
    materialize: bool = False

    def build(
        self,
        seed: int,
        keys: Mapping[int, int] | None = None,
        *,
        follow: bool = False,
        garbage: bool = False,
    ) -> Built:
        """Build the candidate with a seed.

        Args:
            seed: The seed.
            keys: The keys of draws by their numbers. Other draws are seeded by their operation and
                arguments.
            follow: Whether to record which memory each draw reaches.
            garbage: Whether uninitialised memory reads as NaN.

        Raises:
            Exception: Any error of the candidate.
        """
        draws = Draws()
        construction = _Construction(draws, seed, keys or {}, follow, garbage)
        with Interception(construction):
            candidate = self.propose()
            module = candidate.build()
            if self.materialize or _is_unmaterialized(module):
                with torch.no_grad():
                    module.eval()(self.inputs())
                    module.train()
            narrow = _widen(module)
        return Built(candidate, module, draws, narrow, construction.is_seeded())


def address(tensor: Tensor) -> int:
    """The address of a tensor's memory; 0 if it has none of its own."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()


@functools.cache
def is_random(operation: Any) -> bool:
    """Whether an operation may draw random numbers from a generator."""
    return torch.Tag.nondeterministic_seeded in operation.tags


class _Construction:
    """Seeds every draw of a build and tracks its values through memory."""

    def __init__(
        self, draws: Draws, seed: int, keys: Mapping[int, int], follow: bool, garbage: bool
    ) -> None:
        self._draws, self._seed, self._keys = draws, seed, keys
        self._follow, self._garbage = follow, garbage
        self._left: Tensor | None = None
        self._seeded = False

    def is_seeded(self) -> bool:
        """Whether the candidate set the state of torch's generator."""
        self._check_state()
        return self._seeded

    def handle(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Seed an operation that draws, and track its result."""
        own = is_random(func) and kwargs.get("generator") is None
        if own:
            self._draw(func, args, kwargs)
        result = call(func, args, kwargs)
        if own and self._follow:
            self._left = torch.default_generator.get_state()
        if self._garbage and "empty" in func.__name__ and result.is_floating_point():
            result.fill_(math.nan)
        if self._follow and (own or self._draws.reached):
            self._trace(func, args, kwargs, result, own)
        return result

    def _draw(self, func: Any, args: Any, kwargs: Any) -> None:
        self._check_state()
        events = self._draws.events
        event = f"{func}({plain(args, kwargs)})"
        key = self._keys.get(len(events), -1)
        events.append(event)
        torch.default_generator.manual_seed(seed_of(b"draw", self._seed, key, event))

    def _check_state(self) -> None:
        left = self._left
        self._seeded |= left is not None and not torch.default_generator.get_state().equal(left)

    def _trace(self, func: Any, args: Any, kwargs: Any, result: Any, own: bool) -> None:
        if func.is_view:
            return
        written = _overwritten(func, args)
        sources = frozenset((len(self._draws.events) - 1,)) if own else frozenset[int]()
        for tensor in tensors_in((args, kwargs)):
            if tensor is not written:
                sources |= self._draws.of(tensor)
        for tensor in tensors_in(result):
            self._draws.reach(tensor, sources)


def _overwritten(func: Any, args: Any) -> Tensor | None:
    """The tensor that an operation overwrites completely."""
    if not args or not isinstance(args[0], Tensor) or not func._schema.is_mutable:
        return None
    target = args[0]
    covers = target.numel() * target.element_size() == target.untyped_storage().nbytes()
    name = func._schema.name.rpartition("::")[2]
    return target if covers and (is_random(func) or name in ("zero_", "fill_", "copy_")) else None


def _is_unmaterialized(module: nn.Module) -> bool:
    """Whether the module has tensors that are only made in a first forward pass."""
    return any(map(is_lazy, [*module.parameters(), *module.buffers()]))


_NARROW_BYTES = 4


def _widen(module: nn.Module) -> tuple[str, ...]:
    """Convert a module to double precision.

    Returns:
        The types of its tensors that were narrower than single precision.
    """
    others = [slot for slot in slots(module) if _is_other_float(slot.tensor)]
    if others:
        module.double()
    for part, name, tensor in others:
        if name not in part._parameters and name not in part._buffers:
            part.__dict__[name] = tensor.double()
    types = {slot.tensor.dtype for slot in others}
    return tuple(sorted(str(each) for each in types if each.itemsize < _NARROW_BYTES))


def _is_other_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64


@contextmanager
def restored_tensors(module: nn.Module) -> Iterator[None]:
    """Restore all tensors of a module and its mode at the end of the context."""
    modes = [(part, part.training) for part in module.modules()]
    held = [slot for slot in slots(module) if 0 not in slot.tensor.stride()]
    kept = [(slot, slot.tensor.detach().clone()) for slot in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for (part, name, tensor), before in kept:
                tensor.detach().copy_(before)
                buffers = dict(part.named_buffers(recurse=False))
                if name in buffers and buffers[name] is not tensor:
                    part._buffers[name] = tensor
        for part, training in modes:
            part.training = training
