"""The code behind a module: a digest of it, and the whole numbers in it.

What a module does only later, or only in larger batches, is in its code and in the plain values
that the code can reach: constants, attributes, globals, and what closures hold.
"""

import dis
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from automl.identity.construction import own_attributes

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MAKING = frozenset(("__init__", "reset_parameters", "extra_repr"))
"""Functions that run before a batch is there."""
_CHOOSING = frozenset(("min", "max", "range", "divmod", "clamp", "minimum", "maximum"))
_MOST = 1000
"""So many functions and values are looked at, for code may reach without end."""


def code_digest(part: nn.Module) -> str:
    """A digest of a module's own code with what it reaches; not of its tensors and its state."""
    texts = [repr(each) for each in _reached(part, with_state=False) if isinstance(each, _PLAIN)]
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Code:
    """What the code of a module and of its parts says of the batches that it may tell apart.

    numbers: all whole numbers that it may compare a size with; none where it compares nothing.
    asks_mode: whether it looks at the mode, training or not.
    """

    numbers: frozenset[int]
    asks_mode: bool

    @classmethod
    def of(cls, module: nn.Module) -> "Code":
        """Read the code of a module."""
        seen = [each for part in module.modules() for each in _reached(part, with_state=True)]
        codes = [each for each in seen if isinstance(each, CodeType)]
        used = [code for code in codes if code.co_name not in _MAKING]
        numbers = {each for each in seen if type(each) is int}
        compares = any(map(_compares, used))
        modes = any("training" in code.co_names for code in used)
        return cls(frozenset(numbers if compares else ()), modes)


@functools.lru_cache(maxsize=1024)
def _compares(code: CodeType) -> bool:
    """Whether code compares numbers, takes remainders, or chooses by them."""
    if not _CHOOSING.isdisjoint(code.co_names):
        return True
    return any(
        each.opname in ("COMPARE_OP", "CONTAINS_OP") or each.argrepr in ("%", "//", "%=", "//=")
        for each in dis.get_instructions(code)
    )


def is_plain(value: object) -> bool:
    """Whether a value is a number or text, or a collection of these."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(item) for key, item in value.items())
    return False


def _reached(part: nn.Module, with_state: bool) -> Iterator[object]:
    """Functions, their code and plain values, in an order that follows from the code."""
    own = own_attributes(part)
    todo: list[object] = [type(part)]
    todo += [own[name] for name in sorted(own) if with_state or not is_plain(own[name])]
    seen: set[int] = set()
    while todo and len(seen) < _MOST:
        value = todo.pop()
        if isinstance(value, _PLAIN):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            yield value
            todo.extend(_inside(value))


def _inside(value: Any) -> list[object]:
    """What a value holds that decides what it does."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, dict):
        return [item for pair in value.items() for item in pair]
    if isinstance(value, CodeType):
        return [value.co_code, *value.co_consts, *value.co_names]
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
    return []


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
    """The code of a class and of those that it inherits from, up to a library's."""
    held: list[object] = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins"):
            break
        own = vars(base)
        held += [own[name] for name in sorted(own) if name not in ("__doc__", "__module__")]
    return held


@functools.cache
def _libraries() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
