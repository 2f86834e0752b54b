"""Record what a forward pass consults that a probe cannot show.

A probe runs in double precision, for a few steps, on a few examples. It does not show a cast to
half precision, an event of probability 0.01, or a counter that enables a layer after a thousand
calls. If such a dependency can be described exactly, the description becomes part of the key.
Otherwise, the function is not compared with others.
"""

import hashlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automl.identity.probes.construction import Slot, address, is_random, own_attributes, slots
from automl.identity.probes.forward_draws import Noise, read
from automl.identity.probes.interception import Call, Handler, Interception
from automl.identity.probes.isolation import CLOCKS, DATES, replaced
from automl.identity.probes.module_code import digest_of_code
from automl.identity.probes.values import Values, scalars, tensors_in

_FEWEST = 8
"""A draw of fewer numbers affects an entire batch, and a probe sees few batches."""
_NARROWEST = 4
_COMPARED = ("lt", "le", "gt", "ge", "eq", "ne")
_DECIDING = (
    *_COMPARED,
    *("floor", "ceil", "round", "trunc", "frac", "sign", "sgn", "heaviside", "bucketize"),
    *("argmax", "argmin", "topk", "searchsorted", "nonzero"),
)
_FOLLOWED = ("rand", "randn", "uniform", "normal", "bernoulli", "multinomial", "randperm")
_TRUTH = ("_local_scalar_dense", "item", "is_nonzero")
_RANDOMNESS: tuple[tuple[Any, str], ...] = ((os, "urandom"), (random, "_urandom"))


class Consulted:
    """What one or more forward passes consulted.

    Attributes:
        exact: Descriptions that belong to the key, with their numbers of occurrences.
        hidden: Why the function cannot be compared with others; None if it can.
        chooses: Whether the inputs decide something discrete, such as which expert is used.
        branches: Whether the code reads a number that the inputs decide, such as in an `if`.
    """

    def __init__(self) -> None:
        self.exact: Counter[str] = Counter()
        self.hidden: str | None = None
        self.chooses = self.branches = False
        self._state: str | None = None

    def hide(self, reason: str) -> None:
        """Record why the function cannot be compared; only the first reason counts."""
        self.hidden = self.hidden or reason

    def texts(self) -> tuple[str, ...]:
        """The descriptions that belong to the key, sorted."""
        return tuple(sorted(self.exact.elements()))

    @contextmanager
    def recording(
        self, module: nn.Module, noise: Noise, inputs: Any, *others: Handler
    ) -> Iterator[None]:
        """Record what the forward and backward passes within the context consult.

        Args:
            module: The module.
            noise: Seeds and widens its draws.
            inputs: The batch.
            others: More handlers of the operations.
        """
        before, state = generators(module), self._state or digest_of_code(module)
        held = {address(slot.tensor): slot.tensor for slot in slots(module)}
        operations = _Operations(self, noise, held, inputs, state)
        with _recorded_calls(self), Interception(*others, noise, operations):
            yield
        if any(map(operations.is_new_state, slots(module))):
            self.hide("counts in tensors that it replaces")
        if generators(module) != before:
            self.hide("draws random numbers outside torch")
        self._state = digest_of_code(module)
        if self._state != state:
            # The later effect of a state follows from the code and the other values it reaches.
            self.exact[f"state {state}"] += 1


@dataclass(frozen=True)
class _Drawn:
    """A tensor that was computed from a draw.

    Attributes:
        shown: Whether a probe shows its rare values.
        input_free: Whether it was computed without the inputs and from known values only.
    """

    shown: bool
    input_free: bool = True


class _Operations:
    """Inspects each operation and tracks draws and counters.

    A *counter* is a tensor of the module that changes by something independent of the inputs.

    Args:
        consulted: Where to record.
        noise: Seeds and widens draws.
        held: The tensors of the module by address.
        inputs: The batch.
        code: A digest of the module's code.
    """

    def __init__(
        self,
        consulted: Consulted,
        noise: Noise,
        held: Mapping[int, Tensor],
        inputs: Any,
        code: str,
    ) -> None:
        self._consulted, self._noise, self._held, self._code = consulted, noise, held, code
        self._values = Values()
        self._seed = torch.default_generator.get_state()
        # By address, with the tensors themselves so that no other tensor gets their address.
        self._data = {address(tensor): tensor for tensor in tensors_in(inputs)}
        self._drawn: dict[int, tuple[Tensor, _Drawn]] = {}
        self._counted: dict[int, tuple[Tensor, str]] = {}

    def handle(self, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Inspect an operation and track its results."""
        given, count = tensors_in((args, kwargs)), self._noise.count
        result = call(func, args, kwargs)
        made = tensors_in(result)
        self._look_at_types(given, made)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            self._consulted.hide("casts by autocast")
        if func.is_view:
            return result
        if any(address(each) in self._data for each in given):
            self._consulted.chooses |= _is_real(given) and not _is_real(made, every=True)
            self._consulted.branches |= func._opname in _TRUTH
            self._data.update((address(each), each) for each in made)
        if is_random(func) and not self._noise.is_running:
            self._consulted.hide("draws in its backward pass")
        elif self._noise.count > count:
            self._draw(func, args, kwargs, made)
        else:
            self._follow_draws(func, args, kwargs, given, made)
            self._follow_counters(func, args, kwargs, given, made)
        return result

    def is_new_state(self, slot: Slot) -> bool:
        """Whether a tensor is new to the module and was not computed from the inputs."""
        at = address(slot.tensor)
        return at not in self._held and at not in self._data

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

    # Draws.
    def _draw(self, func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
        if not torch.default_generator.get_state().equal(self._seed):
            self._consulted.hide("sets the state of torch's generator")
        name = func._opname.removesuffix("_like").rstrip("_")
        # `rand_like` and others read only the shape of their argument, not probabilities.
        known = [] if func._opname.endswith("_like") else tensors_in(read(func, args))
        self._note(f"{name} {_settings(args, kwargs)}", known)
        if any(tensor.numel() < _FEWEST for tensor in made):
            self._consulted.hide("one draw affects the entire batch")
        for tensor in made:
            self._drawn[address(tensor)] = (tensor, _Drawn(shown=name in _FOLLOWED))

    def _follow_draws(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]
    ) -> None:
        drawn = [self._drawn[address(each)][1] for each in given if address(each) in self._drawn]
        if not drawn:
            return
        name = func._opname.rstrip("_")
        if name in _TRUTH:
            self._consulted.hide("branches on a draw")
        others = [each for each in given if address(each) not in self._drawn]
        shown, input_free = (
            all(getattr(each, what) for each in drawn) for what in ("shown", "input_free")
        )
        if name in _DECIDING and not (shown and input_free):
            self._consulted.hide("decides by a draw whose rare values a probe does not show")
        if name in _COMPARED or (input_free and not self._follows_data(others)):
            self._note(f"{name} {scalars(args, kwargs)}", others)
        elif others:
            input_free = False
        for tensor in made:
            self._drawn[address(tensor)] = (tensor, _Drawn(shown or name in _COMPARED, input_free))

    def _follows_data(self, tensors: list[Tensor]) -> bool:
        return any(address(each) in self._data for each in tensors)

    # Counters.
    def _follow_counters(
        self, func: Any, args: Any, kwargs: Any, given: list[Tensor], made: list[Tensor]
    ) -> None:
        counted = [each for each in given if address(each) in self._counted]
        others = [each for each in given if address(each) not in self._counted]
        if func._schema.is_mutable and given and self._is_counter(given):
            others = []
        elif not counted:
            return
        name = func._opname.rstrip("_")
        before = sorted(self._counted[address(each)][1] for each in counted)
        history = f"{before} {name} {scalars(args, kwargs)}"
        if name in _TRUTH or name in _DECIDING:
            # The code determines later decisions.
            self._note(f"{history} {self._code}", others)
        elif self._follows_data(others) or not made:
            self._note(history, [])
            return
        if others:
            history += hashlib.blake2b(self._values.of(*others), digest_size=16).hexdigest()
        for tensor in made:
            self._counted[address(tensor)] = (tensor, history)

    def _is_counter(self, given: list[Tensor]) -> bool:
        """Whether an operation updates a tensor of the module without using the inputs."""
        target, *others = given
        at = address(target)
        return at in self._held and at not in self._data and not any(map(self._is_from, others))

    def _is_from(self, tensor: Tensor) -> bool:
        at = address(tensor)
        return at in self._data or (at in self._held and at not in self._counted)

    def _note(self, what: str, values: list[Tensor]) -> None:
        digest = hashlib.blake2b(self._values.of(*values), digest_size=16).hexdigest()
        self._consulted.exact[f"{what} {digest if values else ''}"] += 1


def _is_real(tensors: list[Tensor], every: bool = False) -> bool:
    """Whether any of some tensors has real or complex numbers, or all of them do."""
    real = (each.dtype.is_floating_point or each.dtype.is_complex for each in tensors)
    return all(real) if every else any(real)


def _settings(args: Any, kwargs: Mapping[str, Any]) -> str:
    """The numeric arguments of a draw, such as a probability. Sizes follow from its use."""
    given = [*args, *(kwargs[name] for name in sorted(kwargs))]
    return ",".join(f"{each:.12g}" for each in given if isinstance(each, int | float))


@contextmanager
def _recorded_calls(consulted: Consulted) -> Iterator[None]:
    """Record calls that no torch operation shows: autocast, clocks, the system's randomness."""

    def noting(call: Callable[..., Any], reason: str) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            consulted.hide(reason)
            return call(*args, **kwargs)

        return noted

    calls: list[tuple[Any, str, str]] = [(torch.autocast, "__enter__", "casts by autocast")]
    calls += [(time, name, "reads the clock") for name in (*CLOCKS, *DATES)]
    calls += [(torch.cuda, "is_available", "reads the device")]
    calls += [(where, name, "draws from the system's randomness") for where, name in _RANDOMNESS]
    with ExitStack() as stack:
        for where, name, reason in calls:
            noted = noting(getattr(where, name), reason)
            stack.enter_context(replaced(where, name, noted))
        yield


def generators(module: nn.Module | None = None) -> list[object]:
    """The states of all random generators outside torch: Python's, numpy's and the module's own."""
    states: list[object] = [random.getstate(), _numpy_state(np.random.get_state())]
    for part in module.modules() if module is not None else ():
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
