"""Limits on the calls of a program, so that no integer makes torch run forever or use all memory.

Torch rejects only what no machine could store. Smaller requests can still exhaust this machine and
end the process, and some integers have no limit at all: the smallest one as an exponent runs
forever.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

LARGEST_TENSOR = 2**31
"""The largest number of elements in a tensor, far more than a layer of a sensible model has."""
_LARGEST_COUNT = 2**24
_MOST_PARTS = 2**16
_CHOOSING = """
axis0 axis1 decimals destination dim dim0 dim1 dim2 dimension dims_other dims_self end end_dim high
index indices low max min other padding_idx path shifts source start start_dim step storage_offset
"""
_PLACES = frozenset(_CHOOSING.split())
"""Integers that select existing elements, so any value is safe, such as the end of a slice."""
_SHAPES = frozenset(("normalized_shape", "output_size", "s", "shape", "size", "sizes"))
_PARTS = frozenset(("chunks", "sections"))
_GROWING = ("repeat", "tile", "repeat_interleave")
"""Operations whose result is larger by the product of their integers."""


def bounded(operation: OpOverload) -> Callable[..., Any]:
    """Guard an operation against extreme integers and extremely large results."""
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
    """Check that no count, size or exponent is extremely large.

    Raises:
        ValueError: One of them is.
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
        raise ValueError(f"it uses {name} {value}, more than {largest:,}")


def _check_numbers(amount: float) -> None:
    if not amount <= LARGEST_TENSOR:
        raise ValueError(f"it makes a tensor of {amount:,} elements, more than {LARGEST_TENSOR:,}")


def _product(sizes: Iterable[int]) -> int:
    """Return the number of elements for these sizes; an inferred size, -1, counts as 1."""
    return math.prod(size if size >= 0 else 1 for size in sizes)


# The size of some operations' results, from their arguments.
Given = Mapping[str, Any]


def _numbers_in(given: Given, name: str) -> int:
    found = given.get(name)
    return found.numel() if isinstance(found, Tensor) else 1


def _repeated(given: Given) -> int:
    times = given.get("repeats", given.get("dims", 1))
    if isinstance(times, Tensor):
        # For `repeat_interleave`, there is one count per row.
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
    """Count the results of combining each element of one tensor with each of the others."""
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
