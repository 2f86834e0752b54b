"""Short digests of tensors that ignore rounding noise."""

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PROJECTIONS = 3
_LONGEST = 2**16
_BITS = 20
# Below this root mean square, values count as zero: only rounding noise is left.
_ZERO = 2.0**-30
# Keeps scales that are common in data, powers of two, away from the edges between exponents.
_OFF_EDGE = 0.7390851332151607
_ATOMS = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout))

Vector = NDArray[np.float64]


class Values:
    """Computes digests of values, each once. Tensors are compared by their elements in order.

    Shapes do not count: a layer may add its bias before or after a reshape and is the same layer.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, int, bytes]] = {}

    def of(self, *values: Any) -> bytes:
        """Hash tensors and numbers in nested lists, tuples and mappings."""
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
            return _text(value).encode()
        return type(value).__qualname__.encode()

    def _of_tensor(self, tensor: Tensor) -> bytes:
        known = self._known.get(id(tensor))
        if known is not None and known[1] == tensor._version:
            return known[2]
        digest = _digest(tensor)
        # Keep the tensor alive, so that no other tensor gets its id.
        self._known[id(tensor)] = (tensor, tensor._version, digest)
        return digest


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[Tensor]) -> None:
    # Comparing types first is fast, and this runs for each operation of a probe.
    if type(value) in _ATOMS:
        return
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, found)
    elif isinstance(value, Mapping):
        for item in value.values():
            _collect(item, found)


def plain(args: Any, kwargs: Mapping[str, Any]) -> str:
    """The arguments of an operation as text, with only the shapes of tensors."""
    names = sorted(name for name in kwargs if name != "generator")
    return ",".join(map(_plain, [*args, *names, *map(kwargs.get, names)]))


def scalars(args: Any, kwargs: Mapping[str, Any]) -> str:
    """The arguments of an operation as text, without tensors and None."""
    names = sorted(name for name in kwargs if name != "generator")
    given = [*args, *(item for name in names for item in (name, kwargs[name]))]
    settings = (value for value in given if not tensors_in(value))
    return ",".join(_text(value) for value in settings if value is not None)


def _plain(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else _text(value)


def _text(value: Any) -> str:
    """A value as text that ignores rounding noise."""
    return f"{value:.12g}" if isinstance(value, float) else repr(value)


def seed_of(*parts: object) -> int:
    """Derive a seed from parts: bytes, or anything else by its text."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        hashed.update(b"%d:" % len(raw))
        hashed.update(raw)
    return int.from_bytes(hashed.digest(), "big") >> 1


def _digest(tensor: Tensor) -> bytes:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    flat = real.detach().to(torch.float64).numpy(force=True).reshape(-1)
    norm = math.sqrt(np.einsum("i,i", flat, flat))
    if not math.isfinite(norm):
        return b"%d?" % len(flat)
    if norm <= _ZERO * math.sqrt(max(len(flat), 1)):
        return b"%d0" % len(flat)
    exponent = math.frexp(norm * _OFF_EDGE)[1]
    cells = [round(math.ldexp(number, _BITS - exponent)) for number in _projected(flat).tolist()]
    return f"{len(flat)}:{exponent}{cells}".encode()


def _projected(flat: Vector) -> Vector:
    """Fixed random projections of a vector."""
    # einsum rather than a linear algebra library: for so few numbers, the calls take the time.
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
