"""The code behind a module: a digest of the code and its state, and the integers in it.

Whatever a module does only later, or only in larger batches, must appear in its code or in the
values that the code can reach: constants, attributes, globals, hooks and closures.
"""

import dis
import functools
import hashlib
import itertools
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_CONSTRUCTION = frozenset(("__init__", "reset_parameters", "extra_repr"))
"""Functions that run before there is a batch."""
_CHOOSING = frozenset(("min", "max", "range", "divmod", "clamp", "minimum", "maximum"))
_MODES = frozenset(("training", "train", "eval", "is_grad_enabled", "requires_grad"))
_DEVICES = frozenset(("cpu", "cuda", "mps", "xpu"))
_MAX_VISITED = 5000
"""The largest number of functions and values to visit: code may reach unboundedly many."""
_COUNTERS = (itertools.count, itertools.cycle, itertools.repeat)
_TENSORS = frozenset(("_parameters", "_buffers", "_modules", "training"))
_MAX_FACTORS = 16
_MAX_COUNTERS = 16
_LIBRARIES = frozenset(("torch", "numpy", "automl", "optuna", "threading", "logging"))


def digest_of_code(module: nn.Module) -> str:
    """Hash the code of a module and of its parts, with all values that the code can reach.

    Parameters and buffers do not count. All other state does, so the digest changes with it.
    """
    texts = [repr(each) for each in _reached(module) if isinstance(each, _PLAIN)]
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Code:
    """What the code of a module and of its parts shows about the batches that it may distinguish.

    Attributes:
        numbers: All integers that the code may compare a size with; empty if it compares nothing.
        asks_mode: Whether the code reads the mode, training or evaluation.
        names_device: Whether the code names a type of device.
    """

    numbers: frozenset[int]
    asks_mode: bool
    names_device: bool

    @classmethod
    def of(cls, module: nn.Module) -> "Code":
        """Read the code of a module."""
        seen = list(_reached(module))
        codes = [each for each in seen if isinstance(each, CodeType)]
        used = [code for code in codes if code.co_name not in _CONSTRUCTION]
        numbers = {int(each) for each in seen if type(each) is int or isinstance(each, np.integer)}
        compares = any(map(_compares, used))
        modes = any(not _MODES.isdisjoint((*code.co_names, code.co_name)) for code in used)
        products = frozenset(_with_products(numbers) if compares else ())
        names_device = any(type(each) is str and each in _DEVICES for each in seen)
        return cls(products, modes, names_device)


def _with_products(numbers: set[int]) -> set[int]:
    factors = sorted(number for number in numbers if number > 1)[:_MAX_FACTORS]
    return numbers | {a * b for a in factors for b in factors}


@functools.lru_cache(maxsize=1024)
def _compares(code: CodeType) -> bool:
    """Whether code compares numbers, takes remainders, or selects by them."""
    if not _CHOOSING.isdisjoint(code.co_names):
        return True
    return any(
        each.opname in ("COMPARE_OP", "CONTAINS_OP") or each.argrepr in ("%", "//", "%=", "//=")
        for each in dis.get_instructions(code)
    )


def _reached(module: nn.Module) -> Iterator[object]:
    """The functions, code objects and plain values that a module can reach, in a fixed order."""
    todo: list[object] = []
    for part in module.modules():
        todo += [type(part), *_attributes(part)]
    seen: set[int] = set()
    while todo and len(seen) < _MAX_VISITED:
        value = todo.pop()
        if isinstance(value, _PLAIN):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            yield value
            todo.extend(_inside(value))


def _attributes(part: nn.Module) -> list[object]:
    """Everything a module holds besides tensors and submodules: hooks, functions, state."""
    if type(part).__module__.startswith("automl."):
        return []  # a module built from a graph: its parts are visited instead
    return [
        value
        for name, value in vars(part).items()
        if name not in _TENSORS and not (isinstance(value, dict) and not value)
    ]


def _inside(value: Any) -> list[object]:
    """The contents of a value that determine what it does."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, dict):
        return [item for pair in value.items() for item in pair]
    if isinstance(value, CodeType):
        return [value.co_name, value.co_code, *value.co_consts, *value.co_names]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType | staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, FunctionType):
        return _of_function(value)
    if isinstance(value, type):
        return _of_class(value)
    return _of_object(value)


def _of_object(value: Any) -> list[object]:
    """The state of an object: its attributes, or another representation for some types."""
    if isinstance(value, np.ndarray | np.generic):
        return [value.tobytes()]
    if isinstance(value, Tensor):
        # Large tensors and trained ones are not counters.
        if value.is_meta or value.requires_grad or value.numel() > _MAX_COUNTERS:
            return []
        return [str(value.dtype), repr(value.tolist())]
    if isinstance(value, _COUNTERS):
        return [repr(value)]
    if isinstance(value, GeneratorType):
        frame = value.gi_frame
        return [] if frame is None else [frame.f_lasti, dict(frame.f_locals)]
    if isinstance(value, nn.Module):
        return [type(value), *_attributes(value)]
    if isinstance(value, ModuleType) or _is_of_library(type(value)):
        return []
    slots = getattr(type(value), "__slots__", ())
    names = [slots] if isinstance(slots, str) else slots
    kept = [getattr(value, name, None) for name in names]
    return [type(value), *kept, dict(getattr(value, "__dict__", {}))]


def _is_of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _of_function(function: FunctionType) -> list[object]:
    code = function.__code__
    if code.co_filename.startswith(_libraries()):
        return [f"{function.__module__}.{function.__qualname__}"]
    cells = [_content(cell) for cell in function.__closure__ or ()]
    known = function.__globals__
    found = [known[name] for name in code.co_names if name in known]
    return [code, function.__defaults__, function.__kwdefaults__, *cells, *found]


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _of_class(kind: type) -> list[object]:
    """The code of a class and of its bases, up to the first base from a library."""
    held: list[object] = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins", "automl"):
            break
        own = vars(base)
        held += [own[name] for name in sorted(own) if name not in ("__doc__", "__module__")]
    return held


@functools.cache
def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    libraries = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return (*libraries, str(Path(__file__).parents[2]))
