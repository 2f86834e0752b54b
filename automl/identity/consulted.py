"""What a forward pass consults that a probe cannot show, and so must be known exactly.

A probe runs in double precision, for a few steps, on a few examples. A cast to half precision, an
event of probability 0.01 or a counter that switches a layer on after a thousand calls is in what
a candidate computes and not in what a probe sees. Where such a thing can be written down exactly
it becomes part of the key; where not, the function is not compared with others.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from automl.identity.construction import address, own_attributes
from automl.identity.noise import Noise
from automl.identity.values import Values, scalars, tensors_in

_FEWEST = 8
"""A draw of fewer numbers decides for a batch, and a probe sees few batches."""
_NARROWEST = 4
_COMPARED = ("lt", "le", "gt", "ge", "eq", "ne")
_FOLLOWED = ("rand", "randn", "uniform", "normal", "bernoulli", "multinomial", "randperm")
_TRUTH = ("_local_scalar_dense", "item", "is_nonzero")
_PLAIN = (bool, int, float, str, bytes, type(None))


class Consulted:
    """What was consulted in one or more forward passes.

    exact: what belongs to the key, each as text, with how often. hidden: why the function cannot
    be compared; None where it can.
    """

    def __init__(self) -> None:
        self.exact: Counter[str] = Counter()
        self.hidden: str | None = None

    def hide(self, reason: str) -> None:
        """Note why the function cannot be compared; the first reason stands."""
        self.hidden = self.hidden or reason

    def texts(self) -> tuple[str, ...]:
        """What belongs to the key, in an order of its own."""
        return tuple(sorted(self.exact.elements()))

    @contextmanager
    def watching(self, module: nn.Module, noise: Noise) -> Iterator[None]:
        """Take note of what the forward passes inside consult, under this noise."""
        before, states = _generators(module), _states(module)
        with noise, _autocast_hidden(self), _Operations(self, noise):
            yield
        if _generators(module) != before:
            self.hide("draws random numbers outside torch")
        after = _states(module)
        for part, state in states.items():
            if after.get(part, state) != state:
                # What a state decides later is in the code and in the other attributes.
                self.exact[f"state {_code_of(type(part))} {state}"] += 1


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at each operation of the modules that run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, consulted: Consulted, noise: Noise) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._consulted, self._noise = consulted, noise
        self._values = Values()
        # Tensors made of draws alone, kept alive so that no other gets their address; and
        # whether all that can be drawn is shown.
        self._drawn: dict[int, tuple[Tensor, bool]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given, count = list(tensors_in((args, kwargs))), self._noise.count
        result = func(*args, **kwargs)
        made = list(tensors_in(result))
        self._look_at_types(given, made)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            self._consulted.hide("casts by autocast")
        if self._noise.count > count:
            self._draw(func, args, kwargs, made)
        elif self._drawn and not func.is_view:
            self._follow(func, args, kwargs, given, made)
        return result

    def _look_at_types(self, given: list[Tensor], made: list[Tensor]) -> None:
        for tensor in made:
            kind = tensor.dtype
            if kind in (torch.float64, torch.complex128) or not (
                kind.is_floating_point or kind.is_complex or tensor.is_quantized
            ):
                continue
            size = kind.itemsize // (2 if kind.is_complex else 1)
            if size < _NARROWEST or any(each.dtype == torch.float64 for each in given):
                self._consulted.hide(f"casts to {kind}")

    def _draw(self, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        name = func._opname.removesuffix("_like").rstrip("_")
        given = list(tensors_in((args, kwargs)))
        if func._schema.is_mutable:
            given = given[1:]
        # A tensor that is drawn from has probabilities; one that is drawn like has only a shape.
        known = [] if func._opname.endswith("_like") else given
        self._note(f"{name} {_settings(args, kwargs)}", known)
        if any(tensor.numel() < _FEWEST for tensor in made):
            self._consulted.hide("one draw decides for a whole batch")
        for tensor in made:
            self._drawn[address(tensor)] = (tensor, name in _FOLLOWED)

    def _follow(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]
    ) -> None:
        drawn = [self._drawn[address(each)] for each in given if address(each) in self._drawn]
        if not drawn:
            return
        name = func._opname.rstrip("_")
        if name in _TRUTH:
            self._consulted.hide("branches on a draw")
        others = [each for each in given if address(each) not in self._drawn]
        if name in _COMPARED:
            if not all(shown for _, shown in drawn):
                self._consulted.hide("compares a draw whose rare values a probe does not show")
        elif others:
            return
        self._note(f"{name} {scalars(args, kwargs)}", others)
        for tensor in made:
            self._drawn[address(tensor)] = (tensor, True)

    def _note(self, what: str, values: list[Tensor]) -> None:
        digest = hashlib.blake2b(self._values.of(*values), digest_size=16).hexdigest()
        self._consulted.exact[f"{what} {digest if values else ''}"] += 1


def _settings(args: Any, kwargs: Mapping[str, Any]) -> str:
    """The numbers that a draw is told, such as a probability; sizes are in what it is for."""
    given = [*args, *(kwargs[name] for name in sorted(kwargs))]
    return ",".join(repr(each) for each in given if isinstance(each, int | float))


@contextmanager
def _autocast_hidden(consulted: Consulted) -> Iterator[None]:
    """Note when autocast begins: it leaves double precision alone, so nothing shows."""
    enter = torch.autocast.__enter__

    def entered(self: Any) -> Any:
        consulted.hide("casts by autocast")
        return enter(self)  # type: ignore[no-untyped-call]

    torch.autocast.__enter__ = entered  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]


def _generators(module: nn.Module) -> list[object]:
    """The states of all random generators in reach that are not torch's."""
    states: list[object] = [random.getstate(), _numpy_state(np.random.get_state())]
    for part in module.modules():
        for value in own_attributes(part).values():
            if isinstance(value, random.Random):
                states.append(value.getstate())
            elif isinstance(value, np.random.RandomState):
                states.append(_numpy_state(value.get_state()))
            elif isinstance(value, np.random.Generator):
                states.append(repr(value.bit_generator.state))
    return states


def _numpy_state(state: Any) -> tuple[object, ...]:
    _, numbers, *rest = state
    return (numbers.tobytes(), *rest)


def _states(module: nn.Module) -> dict[nn.Module, str]:
    """The plain values that each part of a module keeps in attributes."""
    states = {}
    for part in module.modules():
        own = own_attributes(part)
        kept = {k: v for k, v in own.items() if k != "training" and not k.startswith("_forward")}
        states[part] = repr(sorted((k, repr(v)) for k, v in kept.items() if _is_plain(v)))
    return states


def _is_plain(value: object) -> bool:
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    return False


def _code_of(kind: type) -> str:
    """A digest of the code of a class and of those that it inherits from, up to torch's."""
    hashed = hashlib.blake2b(digest_size=16)
    for base in kind.__mro__:
        if base.__module__.startswith("torch."):
            break
        for name, value in sorted(vars(base).items()):
            function: Callable[..., Any] | None = getattr(value, "fget", value)
            if isinstance(function, FunctionType):
                hashed.update(f"{name}{_code(function.__code__)}".encode())
    return hashed.hexdigest()


def _code(code: CodeType) -> str:
    constants = [
        _code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts
    ]
    return f"{code.co_code.hex()}{constants}{code.co_names}{code.co_varnames}"
