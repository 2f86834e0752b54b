"""Functional hashes of Python callables: equal for functions that compute the same.

Only results count, not how a function is written. Source: R. Gillard et al.: Unified Functional
Hashing in Automatic Machine Learning, arXiv 2302.05433.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Complex, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automl.errors import AutoMLError, Interrupted
from automl.identity.probes.isolation import isolated, reset_state
from automl.identity.probes.sketch import Sketch, Vector

_EXACT = 2**53


class FunctionError(AutoMLError):
    """A callable has no functional hash; the message names it and says why."""


def functional_hash(
    function: Callable[..., Any], inputs: Iterable[Sequence[Any]], *, context: str = ""
) -> str:
    """Hash what a callable computes, regardless of how it is written.

    Numbers that differ by rounding noise count as equal. Nearly all equal functions get the same
    hash; `same_function` also recognises the remaining ones. The global random states of torch,
    numpy and Python do not change.

    Args:
        function: The callable. It may return tensors, arrays, numbers, text, None, and lists,
            tuples and mappings of these. NaN, each infinity and each type of exception are values
            of their own.
        inputs: The positional arguments of each call: tensors, arrays, numbers, or anything else
            that can be copied. Floating-point tensors and arrays are passed as float64 copies. A
            few calls with random values distinguish functions best.
        context: Text that is hashed in, so that hashes with different settings always differ.

    Returns:
        64 hexadecimal digits.

    Raises:
        FunctionError: There are no inputs, or the callable raises on every input, returns different
            results when called again, or returns something that cannot be hashed.
    """
    seen = _observe(function, [tuple(arguments) for arguments in inputs])
    return seen.sketch.digests(f"{seen.exact}{context}")[0]


def same_function(
    one: Callable[..., Any], other: Callable[..., Any], inputs: Iterable[Sequence[Any]]
) -> bool:
    """Whether two callables compute the same on all inputs, up to rounding noise.

    Args:
        one: A callable.
        other: Another callable.
        inputs: The positional arguments of each call, as for `functional_hash`.

    Raises:
        FunctionError: One of them has no functional hash for these inputs.
    """
    calls = [tuple(arguments) for arguments in inputs]
    ours, theirs = _observe(one, calls), _observe(other, calls)
    return ours.exact == theirs.exact and ours.sketch.agrees(theirs.sketch)


@dataclass(frozen=True)
class _Observed:
    """All results of a function.

    Attributes:
        exact: A digest of the structure and of everything that is compared exactly.
        sketch: The numbers.
    """

    exact: str
    sketch: Sketch


@dataclass
class _Results:
    """Collects results, one call after another."""

    exact: list[str] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """Add the result of a call.

        Raises:
            TypeError: The result contains something that cannot be hashed.
        """
        if isinstance(value, Tensor):
            self._add_array(value.detach().cpu().resolve_conj().numpy())
        elif isinstance(value, np.ndarray | np.generic):
            self._add_array(np.asarray(value))
        elif isinstance(value, Mapping):
            names = sorted(value, key=repr)
            self.exact.append(f"{{{names!r}")
            for name in names:
                self.add(value[name])
        elif isinstance(value, list | tuple):
            self.exact.append(f"[{len(value)}")
            for item in value:
                self.add(item)
        elif isinstance(value, int) and abs(value) > _EXACT:
            self.exact.append(repr(value))
        elif isinstance(value, Real | Complex):
            self._add_array(np.asarray(complex(value) if isinstance(value, complex) else value))
        elif value is None or isinstance(value, str | bytes):
            self.exact.append(repr(value))
        else:
            raise TypeError(f"returns a {type(value).__name__}")

    def _add_array(self, array: np.ndarray[Any, Any]) -> None:
        if array.dtype.kind not in "biufc":
            raise TypeError(f"returns an array of {array.dtype}")
        self.exact.append(f"{array.shape}{'c' if array.dtype.kind == 'c' else ''}")
        if array.dtype.kind == "c":
            array = np.stack([array.real, array.imag])
        numbers = array.astype(np.float64).reshape(-1)
        # NaN and the infinities are compared exactly.
        kinds = np.isnan(numbers) + 2 * np.isposinf(numbers) + 3 * np.isneginf(numbers)
        if kinds.any():
            self.exact.append(hashlib.blake2b(kinds.astype("u1").tobytes()).hexdigest())
        self.vectors.append(np.where(kinds == 0, numbers, 0.0))


def _observe(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> _Observed:
    if not calls:
        raise FunctionError(f"{_name(function)} cannot be hashed without inputs")
    with isolated():
        reset_state(0)
        once = _results(function, calls)
        # Another random state and a later time expose functions that depend on them.
        reset_state(1)
        torch.manual_seed(1)
        again = _results(function, calls)
    if once.exact != again.exact or not all(map(_equal, once.vectors, again.vectors)):
        raise FunctionError(
            f"{_name(function)} returns a different result when called again: it depends on random "
            "numbers, time or earlier calls; make it depend on its arguments only"
        )
    exact = hashlib.blake2b("\x1f".join(once.exact).encode(), digest_size=32)
    return _Observed(exact.hexdigest(), Sketch(tuple(once.vectors)))


def _equal(ours: Vector, theirs: Vector) -> bool:
    return np.array_equal(ours, theirs)


def _results(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> _Results:
    results = _Results()
    errors: list[Exception] = []
    for arguments in calls:
        try:
            value = function(*map(_copied, arguments))
        except Interrupted:
            raise
        except Exception as error:
            errors.append(error)
            results.exact.append(f"raises {type(error).__name__}")
            continue
        try:
            results.add(value)
        except (TypeError, RecursionError) as error:
            raise FunctionError(f"{_name(function)} cannot be hashed: it {error}") from error
    if len(errors) == len(calls):
        line = str(errors[0]).partition("\n")[0]
        raise FunctionError(
            f"{_name(function)} raises {type(errors[0]).__name__} on every input: {line}"
        ) from errors[0]
    return results


def _copied(value: Any) -> Any:
    """A copy that a function may change, with floating point as float64."""
    if isinstance(value, Tensor):
        dtype = torch.float64 if value.is_floating_point() else value.dtype
        made = value.detach().to("cpu", dtype, copy=True)
        return made.requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.astype(np.float64 if value.dtype.kind == "f" else value.dtype, copy=True)
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {name: _copied(item) for name, item in value.items()}
    return copy.deepcopy(value)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)
