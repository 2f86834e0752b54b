"""How much a call of a program may ask for: no number makes torch run on, or take all memory.

Torch itself refuses what no machine could hold. Between that and what this machine has free lies
what ends the process, and some counts it takes as they are: the least integer as an exponent makes
it run for ever.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

LARGEST_TENSOR = 2**31
"""Numbers in a tensor: many more than a batch of any sensible model has in one layer."""
_LARGEST_COUNT = 2**24
_MOST_PARTS = 2**16
_CHOOSING = """
axis0 axis1 decimals destination dim dim0 dim1 dim2 dimension dims_other dims_self end end_dim high
index indices low max min other padding_idx path shifts source start start_dim step storage_offset
"""
_PLACES = frozenset(_CHOOSING.split())
"""Integers that choose among what is there, whatever they are: the end of a slice may be any."""
_SHAPES = frozenset(("normalized_shape", "output_size", "s", "shape", "size", "sizes"))
_PARTS = frozenset(("chunks", "sections"))
_GROWING = ("repeat", "tile", "repeat_interleave")
"""Operations that multiply what they are given by all their integers."""


def bounded(operation: OpOverload) -> Callable[..., Any]:
    """The operation; it refuses integers that no model needs, and so large a result."""
    arguments = operation._schema.arguments
    names = [argument.name for argument in arguments]
    counts = [a.name for a in arguments if "int" in str(a.real_type) and a.name not in _PLACES]
    asked = _ASKED.get(operation._schema.name.removeprefix("aten::").removesuffix("_"), _broadcast)

    @functools.wraps(operation)
    def checked(*args: Any, **settings: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | settings
        for name in counts:
            _check_integers(name, given.get(name))
        _check_numbers(asked(given))
        result = operation(*args, **settings)
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, Tensor):
                _check_numbers(each.numel())
        return result

    return checked


def _check_integers(name: str, value: Any) -> None:
    """See that no count, size or exponent is out of all proportion.

    Raises:
        ValueError: one is.
    """
    if isinstance(value, list | tuple):
        for each in value:
            _check(name, each, LARGEST_TENSOR)
        if name in _SHAPES:
            _check_numbers(_product(value))
    elif isinstance(value, int):
        _check(name, value, _MOST_PARTS if name in _PARTS else _LARGEST_COUNT)


def _check(name: str, value: int, largest: int) -> None:
    if abs(value) > largest:
        raise ValueError(f"it calls for {name} {value}, more than {largest:,}")


def _check_numbers(amount: float) -> None:
    if not amount <= LARGEST_TENSOR:
        raise ValueError(f"it makes a tensor of {amount:,} numbers, more than {LARGEST_TENSOR:,}")


def _product(sizes: Iterable[int]) -> int:
    """How many numbers a tensor of these sizes has; -1, which follows from others, counts as 1."""
    return math.prod(size if size >= 0 else 1 for size in sizes)


# What some operations ask for, of all that they are given.
Given = Mapping[str, Any]


def _numbers_in(given: Given, name: str) -> int:
    found = given.get(name)
    return found.numel() if isinstance(found, Tensor) else 1


def _repeated(given: Given) -> int:
    times = given.get("repeats", given.get("dims", 1))
    if isinstance(times, Tensor):
        # Of this alone, the counts are how often each of the rows is repeated.
        rows = max(times.numel(), 1)
        return int(times.sum()) * -(-_numbers_in(given, "self") // rows)
    return _numbers_in(given, "self") * _product(times if isinstance(times, list) else [times])


def _padded(given: Given) -> int:
    sizes, pads = [*given["self"].shape], given["pad"]
    for place, dim in enumerate(reversed(range(len(sizes)))):
        sizes[dim] += sum(max(each, 0) for each in pads[2 * place : 2 * place + 2])
    return _product(sizes)


def _ranged(given: Given) -> float:
    start, end, step = (given.get(key, or_else) for key, or_else in _RANGE.items())
    return abs((end - start) / step) if step else 0.0


_RANGE = {"start": 0, "end": 0, "step": 1}


def _counted(given: Given) -> int:
    found: Tensor = given["self"]
    return int(found.max()) + 1 if found.numel() else 0


def _one_hot(given: Given) -> int:
    classes: int = given.get("num_classes", -1)
    return _numbers_in(given, "self") * (classes if classes >= 0 else _counted(given))


def _enlarged(given: Given) -> float:
    factors = given.get("scale_factors") or [
        given[name] for name in ("scales", "scales_d", "scales_h", "scales_w") if given.get(name)
    ]
    sizes = given.get("output_size")
    name = "input" if "input" in given else "self"
    return 0.0 if sizes else math.prod(map(abs, factors)) * _numbers_in(given, name)


def _combined(given: Given) -> int:
    of: int = given.get("r", 2)
    return int(_numbers_in(given, "self") ** min(max(of, 0), 64))


def _broadcast(given: Given) -> int:
    tensors = [each for each in given.values() if isinstance(each, Tensor)]
    if math.prod(max(each.numel(), 1) for each in tensors) <= LARGEST_TENSOR:
        return 0
    try:
        shape: torch.Size = torch.broadcast_shapes(*(t.shape for t in tensors))  # type: ignore[no-untyped-call]
        return shape.numel()
    except RuntimeError:
        return 0  # it does not broadcast


def _multiplied(given: Given) -> int:
    one, other = given.get("input", given.get("self")), given.get("weight", given.get("other"))
    other = given.get("mat2") if other is None else other
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or 0 in one.shape:
        return 0
    columns = other.shape[0 if "weight" in given else -1] if other.dim() > 1 else 1
    return one.numel() // (one.shape[-1] if one.dim() else 1) * columns


def _joined(given: Given) -> int:
    return sum(each.numel() for each in given["tensors"])


def _all_together(given: Given) -> int:
    """Of operations that combine each number of one tensor with each of the others."""
    tensors = given.get("tensors") or [given.get("self"), given.get("other", given.get("vec2"))]
    return math.prod(max(each.numel(), 1) for each in tensors if isinstance(each, Tensor))


def _square(given: Given) -> int:
    found, offset = given["self"], given.get("offset", given.get("diagonal", 0))
    if given["self"].dim() > 1 and "diagonal" in given:
        return 0
    rest = found.numel() // max(found.shape[-1] if found.dim() else 1, 1)
    side = (found.shape[-1] if found.dim() else 1) + abs(offset)
    return int(rest * side * side)


def _rows_and_columns(given: Given) -> int:
    return int(math.prod(given.get(name, 1) for name in ("n", "m", "row", "col")))


_ASKED: dict[str, Callable[[Given], float]] = {
    **dict.fromkeys(_GROWING, _repeated),
    "constant_pad_nd": _padded,
    "arange": _ranged,
    "bincount": _counted,
    "one_hot": _one_hot,
    "combinations": _combined,
    **dict.fromkeys(("cartesian_prod", "meshgrid", "outer", "kron"), _all_together),
    **dict.fromkeys(("bmm", "linear", "linalg_matmul", "matmul", "mm"), _multiplied),
    **dict.fromkeys(("cat", "concat", "concatenate", "hstack", "stack", "vstack"), _joined),
    **dict.fromkeys(("diag_embed", "diag"), _square),
    **dict.fromkeys(("eye", "tril_indices", "triu_indices"), _rows_and_columns),
    **{
        f"upsample_{kind}": _enlarged
        for kind in (
            *("bicubic2d", "bilinear2d", "linear1d", "nearest1d", "nearest2d", "nearest3d"),
            "trilinear3d",
        )
    },
}
