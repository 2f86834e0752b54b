"""Functional hashes of any Python callable: equal for functions that compute the same.

Source: R. Gillard et al.: Unified Functional Hashing in Automatic Machine Learning, arXiv
2302.05433. How a function is written does not matter, imperative code and lambdas alike.
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
from automl.identity.probes.isolation import isolated, settle
from automl.identity.probes.sketch import Sketch, Vector

_EXACT = 2**53


class FunctionError(AutoMLError):
    """A callable has no functional hash; the text names it and says why."""


def functional_hash(
    function: Callable[..., Any], inputs: Iterable[Sequence[Any]], *, context: str = ""
) -> str:
    """A hash of what a callable computes, not of how it is written: 64 hexadecimal digits.

    inputs: the positional arguments of each call: tensors, arrays, numbers, or anything that can
    be copied; a few calls at generic, random values tell functions apart best. Floating-point
    tensors and arrays are given as float64, as copies. Results may be tensors, arrays, numbers,
    text, None, and lists, tuples and mappings of these; NaN, each infinity and each kind of
    exception are values of their own. Numbers are equal if they differ by rounding noise: nearly
    all equal functions get one hash, and `same_function` spares those the rest. context: hashed
    in, so that hashes under different settings never meet. Torch's, numpy's and Python's global
    random states are left as they were.

    Raises:
        FunctionError: it raises on every input, gives another result when called again, or
            returns something that cannot be hashed; or there is no input.
    """
    seen = _observe(function, [tuple(arguments) for arguments in inputs])
    return seen.sketch.digests(f"{seen.exact}{context}")[0]


def same_function(
    one: Callable[..., Any], other: Callable[..., Any], inputs: Iterable[Sequence[Any]]
) -> bool:
    """Whether two callables compute the same on all inputs, but for rounding noise.

    Raises:
        FunctionError: as `functional_hash`.
    """
    calls = [tuple(arguments) for arguments in inputs]
    ours, theirs = _observe(one, calls), _observe(other, calls)
    return ours.exact == theirs.exact and ours.sketch.agrees(theirs.sketch)


@dataclass(frozen=True)
class _Observed:
    """All results of a function: their structure and what is exact in them, and the numbers."""

    exact: str
    sketch: Sketch


@dataclass
class _Results:
    """Collects results, one call after another."""

    exact: list[str] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """Take up a result.

        Raises:
            TypeError: it holds something that is no value.
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
        # NaN and the infinities are values like others, only exact ones.
        kinds = np.isnan(numbers) + 2 * np.isposinf(numbers) + 3 * np.isneginf(numbers)
        if kinds.any():
            self.exact.append(hashlib.blake2b(kinds.astype("u1").tobytes()).hexdigest())
        self.vectors.append(np.where(kinds == 0, numbers, 0.0))


def _observe(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> _Observed:
    if not calls:
        raise FunctionError(f"{_name(function)} cannot be hashed without inputs")
    with isolated():
        settle(0)
        once = _results(function, calls)
        # Other random states, and a later moment: whoever depends on them gives himself away.
        settle(1)
        torch.manual_seed(1)
        again = _results(function, calls)
    if once.exact != again.exact or not all(map(_equal, once.vectors, again.vectors)):
        raise FunctionError(
            f"{_name(function)} gives another result when it is called again: it depends on "
            "random numbers, on time or on earlier calls; make it a function of its arguments"
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
    """A copy that a function may change, floating point as float64."""
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
