"""Whether what a module computes depends on the size of its batch beyond what a probe can show.

Batch normalisation in groups of 64 is, for a probe's ten examples, normalisation of the whole
batch. So the operations of a forward pass are compared at several sizes, up to thousands of
examples, on tensors without data: sizes and numbers must grow with the batch in proportion, and
the operations must stay the same.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from automl.identity.construction import own_attributes, put_back
from automl.identity.values import tensors_in

_LARGE = (67, 10007)
"""Sizes of batches without data, odd so that no group of examples divides them."""
_SMALLER = (67, 259)
_READING = frozenset(
    (
        *("size", "numel", "nelement", "__len__", "__iter__", "__getitem__", "tolist"),
        *("view", "view_as", "reshape", "reshape_as", "unflatten", "as_strided", "unfold"),
        *("split", "chunk", "tensor_split", "split_with_sizes", "hsplit", "vsplit", "unbind"),
        *("narrow", "select", "index_select", "take", "gather"),
        *("repeat", "tile", "expand", "expand_as"),
    )
)
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


class Reading(TorchFunctionMode):
    """Whether anything inside may look at the number of examples; `found` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.found = self.found or name in _READING or func == _SHAPE
        return func(*args, **(kwargs or {}))


def depends_on_size(module: nn.Module, inputs: Any) -> bool:
    """Whether a module in train mode computes otherwise on some batch of up to 10,007 examples.

    Sizes are tried on tensors without data where the module allows it, else on copies of the
    inputs, where only the operations are compared: what the data decide may change sizes.
    """
    try:
        empty = _without_data(module)
        sizes = (_examples(inputs), *_LARGE)
        return _differs(lambda size: empty(_empty(inputs, size)), sizes, numbers=True)
    except Exception:  # whatever cannot be done without data
        pass
    sizes = (_examples(inputs), *_SMALLER)
    with put_back(module):
        return _differs(lambda size: module(resized(inputs, size)), sizes, numbers=False)


def resized(inputs: Any, size: int) -> Any:
    """A batch of so many examples, by repeating those of a batch."""
    return _mapped(inputs, lambda each: each[torch.arange(size) % len(each)])


def _examples(inputs: Any) -> int:
    return len(next(each for each in tensors_in(inputs) if each.dim()))


def _empty(inputs: Any, size: int) -> Any:
    def made(each: Tensor) -> Tensor:
        return torch.empty((size, *each.shape[1:]), dtype=each.dtype, device="meta")

    return _mapped(inputs, made)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value) if value.dim() else value
    if isinstance(value, Mapping):
        return {name: _mapped(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    return value


def _without_data(module: nn.Module) -> nn.Module:
    made = copy.deepcopy(module).to("meta")
    for part in made.modules():
        own = own_attributes(part)
        own.update({k: v.to("meta") for k, v in own.items() if isinstance(v, Tensor)})
    return made.train()


class _DiffersError(Exception):
    """A pass makes another operation than the first one did."""


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operations of a pass, and the numbers in them; stops at one not expected."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init__(self, expected: Sequence[str] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._expected = expected
        self.names: list[str] = []
        self.numbers: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        numbers = list(_numbers((args, kwargs, result)))
        at, name = len(self.names), f"{func} {len(numbers)}"
        if self._expected is not None and self._expected[at : at + 1] != [name]:
            raise _DiffersError
        self.names.append(name)
        self.numbers.extend(numbers)
        return result


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Tensor):
        return [float(size) for size in value.shape]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _differs(run: Callable[[int], Any], sizes: Sequence[int], *, numbers: bool) -> bool:
    traces: list[_Trace] = []
    for size in sizes:
        trace = _Trace(traces[0].names if traces else None)
        with torch.no_grad(), trace:
            try:
                run(size)
            except _DiffersError:
                return True
        traces.append(trace)
        if len(trace.names) != len(traces[0].names):
            return True
    if not numbers:
        return False
    return not all(map(_grows_evenly(sizes), *(trace.numbers for trace in traces)))


def _grows_evenly(sizes: Sequence[int]) -> Callable[..., bool]:
    """Whether a number is the same at all sizes, or rises evenly with them."""
    first, second, third = sizes
    share = Fraction(third - first, second - first)

    def check(a: float, b: float, c: float) -> bool:
        expected = a + float(share) * (b - a)
        return c == expected or math.isclose(c, expected, rel_tol=1e-9)

    return check
