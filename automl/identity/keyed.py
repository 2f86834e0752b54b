"""Randomness keyed by values: weights and masks that do not depend on how a module is written.

Weights drawn from one seeded generator depend on the order of construction, so that one function
written in two ways gets two sets of weights. Here each random tensor follows from the kind of
module that holds it and from the values that reach that module, and nothing is counted in order.
"""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from automl.errors import CandidateError

_PROJECTIONS = 3
_LONGEST = 2**16
_BITS = 20
# Below this root mean square, values count as the zero that they are but for rounding.
_ZERO = 2.0**-30
# Scales at which data are often found, powers of two, stay off the edges between two exponents.
_OFF_EDGE = 0.7390851332151607
_SMALL = 1024
_GENERATOR = torch.Generator()
Vector = NDArray[np.float64]
_UNLIKE = "the candidate is built of other tensors each time"


class Slot(NamedTuple):
    """Where a module holds a tensor."""

    module: nn.Module
    name: str
    tensor: Tensor


def slots(module: nn.Module) -> list[Slot]:
    """All tensors that a module and its parts hold: parameters, buffers, plain attributes."""
    return [
        Slot(part, name, tensor)
        for part in module.modules()
        for held in _held(part)
        for name, tensor in held.items()
        if tensor is not None and isinstance(tensor, Tensor) and not is_lazy(tensor)
    ]


def _held(part: nn.Module) -> tuple[dict[str, Any], ...]:
    # Those of torch keep theirs where they are found; looking through all attributes is slow.
    plain = {} if type(part).__module__.startswith("torch.nn.") else part.__dict__
    return part._parameters, part._buffers, plain


@contextmanager
def keyed_construction(seed: int, *, garbage: bool = False) -> Iterator[None]:
    """Draw each tensor from its operation, shape and settings, whatever was drawn before.

    garbage: memory that nobody initialises reads as NaN, not as what happens to lie there.
    """

    def before(operation: str, told: str) -> None:
        torch.default_generator.manual_seed(_seed(b"draw", seed, operation, told))

    with _Drawing(before, garbage):
        yield


def is_unmaterialized(module: nn.Module) -> bool:
    """Whether the module has tensors that wait for a first forward pass."""
    return any(map(is_lazy, [*module.parameters(), *module.buffers()]))


@dataclass(frozen=True)
class Layout:
    """How a module works, by the numbers of its parts and tensors in `modules()` and `slots`.

    random: which tensors another seed makes others. owners: the part whose inputs key a tensor,
    and the tensor's name in it. drawing: the parts that draw numbers while they run. grows:
    whether the module makes tensors in its first forward pass. returns: the shape of the tensor
    that it gives for the inputs; None where it gives something else.
    """

    random: tuple[bool, ...]
    owners: tuple[tuple[int, str], ...]
    drawing: tuple[int, ...]
    grows: bool
    returns: tuple[int, ...] | None


Keys = tuple[tuple[int, int], ...]
"""Numbers of tensors in `slots`, in the order they were keyed, each with its key."""


def lay_out(module: nn.Module, other: nn.Module, inputs: Any) -> Layout:
    """Find how a module works, in one forward pass; `other` is a build under another seed.

    Raises:
        CandidateError: the two builds do not hold the same tensors.
        Exception: whatever the module raises.
    """
    held = slots(module)
    random = _randomness(held, slots(other))
    parts = list(module.modules())
    calls = _Calls()
    hooks = [*_hooks(parts, calls.enter, calls.leave)]
    output = _pass(module, inputs, (), hooks, _Drawing(calls.draw))
    owners = _owners(module, held, calls.called)
    drawing = tuple(n for n, part in enumerate(parts) if id(part) in calls.drawing)
    returns = tuple(output.shape) if isinstance(output, Tensor) else None
    return Layout(random, owners, drawing, len(slots(module)) != len(held), returns)


def key_by_values(module: nn.Module, layout: Layout, seed: int, inputs: Any) -> Keys:
    """Permute each random tensor by what reaches its owner, in one forward pass on the inputs.

    Parts that draw numbers while they run are seeded for that, now and whenever they run later.
    What the pass changes in buffers is put back.

    Raises:
        CandidateError: the module is not of this layout.
        Exception: whatever the module raises.
    """
    held, parts = _fitting(module, layout)
    drawn = _seed_draws([parts[number] for number in layout.drawing], seed)
    keying = _Keying(seed)
    keyed: set[int] = set()
    numbered = enumerate(zip(held, layout.random, layout.owners, strict=True))
    for number, (slot, random, (owner, name)) in numbered:
        # Who is reached first keys a tensor that several hold.
        if random:
            keying.pending.setdefault(id(parts[owner]), []).append((number, slot, name))
            keyed.add(id(slot.tensor))
    owners = [part for part in parts if id(part) in keying.pending]
    _pass(module, inputs, keyed, [*_hooks(owners, keying.enter)], nullcontext())
    # Training draws the same whether or not this pass went before it, see `key_again`.
    drawn.clear()
    return tuple(keying.keys)


def key_again(module: nn.Module, layout: Layout, seed: int, keys: Keys) -> None:
    """Permute as `key_by_values` did another build under the same seed, with no forward pass.

    Raises:
        CandidateError: the module is not of this layout.
    """
    held, parts = _fitting(module, layout)
    _seed_draws([parts[number] for number in layout.drawing], seed)
    _seed_answers(module, -seed)
    for number, key in keys:
        _permute(held[number].tensor, key)


def _fitting(module: nn.Module, layout: Layout) -> tuple[list[Slot], list[nn.Module]]:
    """The tensors and the parts of a module, which must be as many as in its layout."""
    held, parts = slots(module), list(module.modules())
    if len(held) != len(layout.random):
        raise CandidateError(_UNLIKE)
    return held, parts


def _randomness(ours: Sequence[Slot], theirs: Sequence[Slot]) -> tuple[bool, ...]:
    if [(s.name, s.tensor.shape) for s in ours] != [(s.name, s.tensor.shape) for s in theirs]:
        raise CandidateError(_UNLIKE)
    return tuple(not torch.equal(a.tensor, b.tensor) for a, b in zip(ours, theirs, strict=True))


def _pass(
    module: nn.Module,
    inputs: Any,
    changed: Collection[int],
    hooks: Sequence[RemovableHandle],
    surroundings: AbstractContextManager[Any],
) -> Any:
    """Pass inputs through a module in train mode, and put back its buffers but for the changed."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part._buffers, name, tensor, None if id(tensor) in changed else tensor.clone())
        for part, _ in modes
        for name, tensor in part._buffers.items()
        if tensor is not None and not is_lazy(tensor)
    ]
    with torch.no_grad():
        try:
            # Most modules are made in this mode, and seeing that is faster than setting it.
            if not all(training for _, training in modes):
                module.train()
            with surroundings:
                output = module(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        for part, training in modes:
            if part.training != training:
                part.training = training
        for kept, name, tensor, before in buffers:
            kept[name] = tensor
            if before is not None:
                tensor.copy_(before)
    return output


def _hooks(
    parts: Sequence[nn.Module], enter: Callable[..., None], leave: Callable[..., None] | None = None
) -> Iterator[RemovableHandle]:
    for part in parts:
        yield part.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        if leave is not None:
            yield part.register_forward_hook(leave)


def _owners(
    module: nn.Module, held: Sequence[Slot], called: Collection[int]
) -> tuple[tuple[int, str], ...]:
    """For each tensor its part, or the nearest part around it that is given tensors.

    Weights may be used by somebody who does not call the part that holds them.
    """
    parts = dict(module.named_modules())
    paths = {id(part): path for path, part in parts.items()}
    numbers = {id(part): number for number, part in enumerate(module.modules())}
    owners = []
    for slot in held:
        path, name = paths[id(slot.module)], slot.name
        while path and id(parts[path]) not in called:
            path, _, last = path.rpartition(".")
            name = f"{last}.{name}"
        owners.append((numbers[id(parts[path])], name))
    return tuple(owners)


class Values:
    """Short digests of values, which rounding noise practically never changes."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, bytes]] = {}

    def of(self, *values: Any) -> bytes:
        """A digest of tensors and numbers in nested lists, tuples and mappings."""
        return b"(%d:%s" % (len(values), b",".join(map(self._of_one, values)))

    def _of_one(self, value: Any) -> bytes:
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, list | tuple):
            return self.of(*value)
        if isinstance(value, Mapping):
            names = sorted(value, key=repr)
            return self.of(*names, *(value[name] for name in names))
        if isinstance(value, int | float | str | None):
            return repr(value).encode()
        return type(value).__qualname__.encode()

    def _of_tensor(self, tensor: Tensor) -> bytes:
        known = self._known.get(id(tensor))
        if known is not None and known[1] == tensor._version:
            return known[2]
        digest = _digest(tensor)
        # Kept alive, so that no other tensor gets its id.
        self._known[id(tensor)] = (tensor, tensor._version, digest)
        return digest


def _digest(tensor: Tensor) -> bytes:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = real.to(torch.float64).numpy(force=True).reshape(-1)
    shape = repr(tuple(tensor.shape))
    norm = math.sqrt(np.einsum("i,i", flat, flat))
    if not math.isfinite(norm):
        return f"{shape}?".encode()
    if norm <= _ZERO * math.sqrt(max(len(flat), 1)):
        return f"{shape}0".encode()
    exponent = math.frexp(norm * _OFF_EDGE)[1]
    cells = [round(math.ldexp(number, _BITS - exponent)) for number in _projected(flat).tolist()]
    return f"{shape}{exponent}{cells}".encode()


def _projected(flat: Vector) -> Vector:
    """Fixed random projections of a vector."""
    # By numpy, and by no library of linear algebra: for so few numbers, calls are what takes time.
    if len(flat) <= _LONGEST:
        projected: Vector = np.einsum("ij,j->i", _directions()[:, : len(flat)], flat)
    else:
        padded = np.pad(flat, (0, -len(flat) % _LONGEST)).reshape(-1, _LONGEST)
        parts = np.einsum("ij,kj->ik", _directions(), padded)
        projected = np.einsum("ik,ik->i", parts, _directions(len(padded)))
    return projected


@functools.lru_cache(maxsize=32)
def _directions(length: int = _LONGEST) -> Vector:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(_PROJECTIONS, length, generator=generator, dtype=torch.float64).numpy()


@dataclass
class _Calls:
    """Which parts of a module are given tensors, and which draw numbers themselves."""

    called: set[int] = field(default_factory=set)
    drawing: set[int] = field(default_factory=set)
    running: list[nn.Module] = field(default_factory=list)

    def enter(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        self.running.append(part)
        if _holds_tensor((args, list(kwargs.values()))):
            self.called.add(id(part))

    def leave(self, part: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()

    def draw(self, operation: str, told: str) -> None:
        self.drawing.update(id(part) for part in self.running[-1:])


@dataclass
class _Keying:
    """Permutes random tensors as the parts that own them are reached."""

    seed: int
    pending: dict[int, list[tuple[int, Slot, str]]] = field(default_factory=dict)
    keys: list[tuple[int, int]] = field(default_factory=list)
    done: set[int] = field(default_factory=set)
    values: Values = field(default_factory=Values)

    def enter(self, part: nn.Module, args: Any, kwargs: Any) -> None:
        waiting = self.pending.pop(id(part), [])
        reaching = self.values.of(args, kwargs) if waiting else b""
        for number, slot, name in waiting:
            if id(slot.tensor) not in self.done:
                self.done.add(id(slot.tensor))
                kind, shape = type(slot.module).__qualname__, tuple(slot.tensor.shape)
                key = _seed(b"key", self.seed, kind, name, shape, reaching)
                self.keys.append((number, key))
                _permute(slot.tensor, key)


class _Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls back before every operation that draws from torch's generator."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here, and keeping it from being compiled costs more than the rest.
        return False

    def __init__(self, before: Callable[[str, str], None], garbage: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before, self._garbage = before, garbage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _draws(func) and kwargs.get("generator") is None:
            names = sorted(kwargs)
            told = ",".join(map(_told, [*args, *names, *map(kwargs.get, names)]))
            self._before(str(func), told)
        result = func(*args, **kwargs)
        if self._garbage and "empty" in func.__name__ and result.is_floating_point():
            result.fill_(math.nan)
        return result


@functools.cache
def _draws(operation: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in operation.tags


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _told(value: Any) -> str:
    """An argument of a drawing operation by its shape or number; its values are not looked at."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else repr(value)


def _seed_draws(parts: Sequence[nn.Module], seed: int) -> Counter[bytes]:
    """Seed what these modules draw by what reaches them, and by how often that did before.

    Returns those counts; emptied, they begin anew.
    """
    drawn: Counter[bytes] = Counter()
    running: list[tuple[bytes, Tensor, Tensor] | None] = []
    quiet: set[int] = set()
    generator = torch.default_generator

    # Functions, for a copied module must not copy the counts.
    def before(part: nn.Module, args: Any, kwargs: Any) -> None:
        if not part.training and id(part) in quiet:
            running.append(None)
            return
        reaching, state = Values().of(args, kwargs), generator.get_state()
        drawn[reaching] += 1
        generator.manual_seed(_seed(b"forward", seed, reaching, drawn[reaching]))
        running.append((reaching, state, generator.get_state()))

    def after(part: nn.Module, args: Any, output: Any) -> None:
        if (run := running.pop()) is None:
            return
        reaching, state, seeded = run
        if generator.get_state().equal(seeded):
            drawn[reaching] -= 1
            # As dropout when it is not trained, which need not be looked at again.
            quiet.update(() if part.training else [id(part)])
        # Whoever draws next, a trainer perhaps, must not see how often was drawn here.
        generator.set_state(state)

    for _ in _hooks(parts, before, after):
        pass
    return drawn


def _seed_answers(module: nn.Module, seed: int) -> None:
    """Have a module draw other numbers in eval mode than it did, but where values seed them.

    A part that never draws in training is not known to draw, and its answers are a matter of luck.
    """
    generator, states = torch.default_generator, []

    def before(part: nn.Module, args: Any) -> None:
        states.append(generator.get_state())
        if not part.training:
            generator.manual_seed(_seed(b"answer", seed))

    def after(part: nn.Module, args: Any, output: Any) -> None:
        state = states.pop()
        if not part.training:
            generator.set_state(state)

    # First of all, so that what values seed is seeded after it.
    module.register_forward_pre_hook(before, prepend=True)
    module.register_forward_hook(after)


@torch.no_grad()
def _permute(tensor: Tensor, seed: int) -> None:
    """Permute the elements in place: their distribution stays what the module made it."""
    if tensor.numel() < 2 or 0 in tensor.stride():
        return
    flat = tensor.detach().reshape(-1)
    size = len(flat)
    if size <= _SMALL:
        order = torch.randperm(size, generator=_GENERATOR.manual_seed(seed))
        permuted = flat.index_select(0, order)
    else:
        # One order for all of a size, entered anywhere: drawing an order takes long.
        first, second = seed % size, seed // size % size
        order = _order(size)[second : second + size]
        permuted = flat.roll(-first).index_select(0, order)
    tensor.detach().copy_(permuted.reshape(tensor.shape))


@functools.lru_cache(maxsize=16)
def _order(size: int) -> Tensor:
    return torch.randperm(size, generator=_GENERATOR.manual_seed(size)).repeat(2)


def _seed(*parts: object) -> int:
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(b"%d:" % len(raw))
        hashed.update(raw)
    return int.from_bytes(hashed.digest(), "big") >> 1
