"""Detect modules that depend on more of a batch than a probe of ten examples can show.

For ten examples, batch normalisation in groups of 64 normalises the entire batch. So the calls of a
forward pass are compared for batches of many sizes, on tensors without data: the calls must be the
same, and the sizes and numbers in them must grow linearly with the batch. The integers in the
module's code suggest the sizes to try. In the same way, a pass in single precision is compared with
one in double precision.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from automl.identity.probes.construction import own_attributes, restored_tensors
from automl.identity.probes.module_code import Code
from automl.identity.probes.values import tensors_in

_SIZES = (10007, 67)
"""Sizes of batches without data; no usual group size divides them."""
_USUAL = (64, 1024)
"""Sizes to try in addition if code compares numbers."""
_WITH_DATA = (67, 259)
"""Sizes to try with data if the module cannot run without."""
_LARGEST = 20_000
_MAX_SIZES = 64
_OF_SIZE = frozenset(
    (
        *("size", "numel", "nelement", "__len__", "__iter__", "__getitem__", "tolist", "stride"),
        *("view", "view_as", "reshape", "reshape_as", "unflatten", "as_strided", "unfold"),
        *("split", "chunk", "tensor_split", "split_with_sizes", "hsplit", "vsplit", "unbind"),
        *("narrow", "select", "index_select", "take", "gather"),
        *("repeat", "tile", "expand", "expand_as"),
    )
)
_OF_TYPE = frozenset(("type", "is_floating_point", "element_size"))
_OUTSIDE = frozenset(
    ("numpy", "__array__", "data_ptr", "untyped_storage", "_shape_as_tensor", "to_dlpack")
)
"""Functions that let code use a tensor outside torch."""
_BY_PLACE = frozenset(
    ("arange", "range", "linspace", "logspace", "eye", "tril_indices", "triu_indices")
)
_SHIFTING = frozenset(("roll", "tril", "triu", "diagonal", "diag", "diag_embed", "flip", "rot90"))
_ALONG = frozenset(("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"))


def _getter(name: str) -> Any:
    return getattr(torch.Tensor, name).__get__


_SIZE_GETTERS = [_getter(name) for name in ("shape", "nbytes")]
_TYPE_GETTERS = [_getter(name) for name in ("dtype", "itemsize", "nbytes")]
_DEVICE_GETTERS = [_getter(name) for name in ("device", "is_cuda", "is_mps", "is_xpu")]
_DEVICE_ANSWERS = _DEVICE_GETTERS[1:]


class MetadataAccess(TorchFunctionMode):
    """A context that records which properties of tensors, besides values, a forward pass reads.

    Attributes:
        size: Whether it reads the number of examples.
        type: Whether it reads the type of numbers.
        device: Whether it reads the device, perhaps only to make other tensors there.
        kind_of_device: Whether it asks for a type of device.
        outside: Whether it uses tensors outside torch, so that it may read anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size = self.type = self.device = self.kind_of_device = self.outside = False

    def __enter__(self) -> Self:
        self._default, torch.get_default_dtype = torch.get_default_dtype, self._get_default_dtype
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        torch.get_default_dtype = self._default

    def _get_default_dtype(self) -> torch.dtype:
        self.type = True
        return self._default()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__get__":
            self.size |= func in _SIZE_GETTERS
            self.type |= func in _TYPE_GETTERS
            self.device |= func in _DEVICE_GETTERS
            self.kind_of_device |= func in _DEVICE_ANSWERS
        else:
            self.size |= name in _OF_SIZE
            self.type |= name in _OF_TYPE
            self.outside |= name in _OUTSIDE
        return func(*args, **(kwargs or {}))


def depends_on_device(module: nn.Module, access: MetadataAccess) -> bool:
    """Whether a module may compute something else on another type of device.

    Args:
        module: The module.
        access: What its forward pass reads.
    """
    return access.kind_of_device or (access.device and Code.of(module).names_device)


def depends_on_size(module: nn.Module, inputs: Any) -> bool:
    """Whether a module computes something else on some batch of up to 20,000 examples.

    Sizes are tried on tensors without data if the module allows that. Otherwise they are tried on
    copies of the inputs, and only the calls are compared, because data may determine sizes.

    Args:
        module: The module.
        inputs: The probe's batch.
    """
    code, examples = Code.of(module), _examples(inputs)
    critical = [size for size in _critical(code.numbers) if size > examples]
    sizes = list(dict.fromkeys((examples, *_SIZES, *critical)))
    if len(sizes) > _MAX_SIZES:
        return True
    modes = (True, False) if code.asks_mode else (True,)
    return any(_depends_on_size(module, inputs, sizes, mode) for mode in modes)


def _depends_on_size(module: nn.Module, inputs: Any, sizes: Sequence[int], mode: bool) -> bool:
    try:
        empty = _without_data(module).train(mode)
        others = [_Pass(empty, _empty(inputs, size), "meta") for size in sizes[1:]]
        with restored_tensors(module):
            # For few examples, a pass with data takes less time than one without.
            return _differ([_Pass(module.train(mode), inputs), *others], sizes, mode)
    except Exception:  # the module needs data
        some = (sizes[0], *_WITH_DATA, *(size for size in sizes[3:] if size <= _WITH_DATA[-1]))
    try:
        with restored_tensors(module):
            module.train(mode)
            return _differ([_Pass(module, resized(inputs, size)) for size in some], None, mode)
    except Exception:  # its behaviour for other sizes is unknown
        return True


def depends_on_type(module: nn.Module, inputs: Any) -> bool:
    """Whether a module makes different calls in single precision than in double precision.

    Args:
        module: The module.
        inputs: The probe's batch, in double precision.
    """
    return any(_depends_on_type(module, inputs, mode) for mode in (True, False))


def _depends_on_type(module: nn.Module, inputs: Any, mode: bool) -> bool:
    single = _mapped(inputs, lambda each: each.float() if each.is_floating_point() else each)
    size = _examples(inputs)
    try:
        wide = _without_data(module).train(mode)
        narrow = _without_data(module, torch.float32).train(mode)
        passes = [
            _Pass(wide, _empty(inputs, size), "meta"),
            _Pass(narrow, _empty(single, size), "meta", torch.float32),
        ]
        return _differ(passes, (size, size), mode)
    except Exception:  # the module needs data
        pass
    try:
        narrow = _converted(copy.deepcopy(module), lambda each: each.float()).train(mode)
        with restored_tensors(module):
            wide_pass = _Pass(module.train(mode), inputs)
            narrow_pass = _Pass(narrow, single, dtype=torch.float32)
            return _differ([wide_pass, narrow_pass], None, mode)
    except Exception:  # its behaviour in single precision is unknown
        return True


def resized(inputs: Any, size: int) -> Any:
    """Repeat or drop examples of a batch to reach a size.

    Args:
        inputs: The batch: tensors with one row per example, perhaps nested.
        size: The number of examples of the result.
    """
    return _mapped(inputs, lambda each: each[torch.arange(size) % len(each)])


def _critical(numbers: Collection[int]) -> Iterator[int]:
    """Sizes at which code with these numbers may change its behaviour."""
    if numbers:
        yield from _USUAL
    for number in sorted(numbers):
        if 1 < number <= _LARGEST:
            yield from (number, number + 1, 2 * number)


def _examples(inputs: Any) -> int:
    return len(next(each for each in tensors_in(inputs) if each.dim()))


def _empty(inputs: Any, size: int) -> Any:
    return _mapped(
        inputs, lambda each: torch.empty((size, *each.shape[1:]), dtype=each.dtype, device="meta")
    )


def _mapped(value: Any, change: Callable[[Tensor], Tensor], scalars: bool = False) -> Any:
    """Apply a function to all tensors of a value; to those without dimensions only if `scalars`."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() or scalars else value
    if isinstance(value, Mapping):
        return {name: _mapped(item, change, scalars) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change, scalars) for item in value)
    return value


def _without_data(module: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    def changed(each: Tensor) -> Tensor:
        return each.to("meta", dtype if each.is_floating_point() else None)

    return _converted(copy.deepcopy(module), changed)


def _converted(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Apply a function to all tensors that a module holds, in place."""
    module._apply(change)  # type: ignore[no-untyped-call]
    for part in module.modules():
        own = own_attributes(part)
        kept = {k: v for k, v in own.items() if tensors_in(v)}
        own.update({k: _mapped(v, change, scalars=True) for k, v in kept.items()})
    return module


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _DiffersError(Exception):
    """A pass makes another call than the first one."""


class _Trace(TorchFunctionMode):
    """Records the calls of a pass and the numbers in them; stops at the first unexpected call."""

    def __init__(self, expected: "_Trace | None") -> None:
        super().__init__()
        self._expected = expected
        self.names: list[str] = []
        self.numbers: list[float] = []
        # A probe shows only the first of the numbers that depend on the position in the batch, so
        # they may not grow.
        self.places: list[float] = []
        self._by_place: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        numbers = _numbers((args, kwargs, result))
        at, name = len(self.names), getattr(func, "__name__", str(func))
        if self._expected is not None and self._expected.names[at : at + 1] != [name]:
            raise _DiffersError
        self.names.append(name)
        self.numbers.extend(numbers)
        if name in _BY_PLACE and isinstance(result, Tensor):
            self._by_place[id(result)] = result
        elif self._uses_place(name, args, kwargs or {}):
            self.places.extend(numbers)
        return result

    def _uses_place(self, name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
        """Whether a call computes with the position of an example in its batch."""
        if name in _SHIFTING:
            return True
        if name in _ALONG:
            along = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return along in (0, -args[0].dim())
        # Selecting each example's own entry does not depend on its position.
        read = args[0] if name == "__getitem__" else (args, kwargs)
        return any(id(each) in self._by_place for each in tensors_in(read))


@dataclass(frozen=True)
class _Pass:
    """A forward pass to trace, with the device and the type of new tensors."""

    module: nn.Module
    inputs: Any
    device: str = "cpu"
    dtype: torch.dtype = torch.float64

    def run(self, trace: _Trace) -> None:
        with _default_type(self.dtype), torch.device(self.device), trace:
            self.module(self.inputs)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Tensor):
        return [float(size) for size in value.shape]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _differ(passes: Iterable[_Pass], sizes: Sequence[int] | None, mode: bool) -> bool:
    """Whether passes differ in their calls, or in numbers that are not linear in these sizes.

    `mode` is true for training, which records gradients.
    """
    traces: list[_Trace] = []
    for each in passes:
        trace = _Trace(traces[0] if traces else None)
        with torch.set_grad_enabled(mode):
            try:
                each.run(trace)
            except _DiffersError:
                return True
        traces.append(trace)
        if len(trace.names) != len(traces[0].names) or trace.places != traces[0].places:
            return True
        if sizes and _two_suffice(traces, sizes):
            return False
    if sizes is None:
        return False
    same_length = len({len(trace.numbers) for trace in traces}) == 1
    return not same_length or not _grow_evenly([trace.numbers for trace in traces], sizes)


def _two_suffice(traces: Sequence[_Trace], sizes: Sequence[int]) -> bool:
    """Whether two passes are enough: all numbers are constant or proportional to the size."""
    if len(traces) != 2 or len(sizes) > 1 + len(_SIZES):
        return False
    (few, many), factor = (trace.numbers for trace in traces), sizes[1] / sizes[0]
    return len(few) == len(many) and all(
        one == other or math.isclose(one * factor, other, rel_tol=1e-12)
        for one, other in zip(few, many, strict=True)
    )


def _grow_evenly(numbers: Sequence[Sequence[float]], sizes: Sequence[int]) -> bool:
    """Whether each number is constant or a linear function of the size."""
    first, second, *others = numbers
    for at, low in enumerate(first):
        if all(found[at] == low or found[at] != found[at] for found in (second, *others)):
            continue
        rise = (second[at] - low) / ((sizes[1] - sizes[0]) or 1)
        for found, size in zip((second, *others), sizes[1:], strict=True):
            expected = low + rise * (size - sizes[0])
            if found[at] != expected and not math.isclose(found[at], expected, rel_tol=1e-9):
                return False
    return True
