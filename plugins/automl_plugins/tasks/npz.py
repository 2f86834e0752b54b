"""NPZ: named arrays of inputs and targets in a NumPy file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl import Classification, Goal, Regression, Task, UsageError, hookimpl

if TYPE_CHECKING:
    import numpy as np


_EXACT = 2**53
"""Larger integers are not exact in floating point."""


def npz(
    *,
    file: Path,
    inputs: str = "x",
    targets: str = "y",
    goal: Goal = Goal.AUTO,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Task:
    """Inputs [n, ...] and targets [n] of a .npz file, split at random.

    Args:
        file: The .npz file.
        inputs: The name of the array of inputs.
        targets: The name of the array of targets.
        goal: Whether to predict classes or numbers. By default integers, booleans and words [n] or
            [n, 1] are classes. Other targets are numbers, and then inputs and targets are
            standardized.
        validation: The share of examples to validate on.
        test: The share of examples to test on.
        seed: The seed of the random split.

    Raises:
        UsageError: The file or an array is missing, or cannot be learned; the message names it.
    """
    arrays = _read(file)
    missing = [name for name in (inputs, targets) if name not in arrays]
    if missing:
        known = ", ".join(arrays) or "none"
        raise UsageError(f"{file} has no array {missing[0]!r}; arrays: {known}")
    x, y = arrays[inputs], arrays[targets]
    _check(file, inputs, x)
    shares: dict[str, Any] = {"validation": validation, "test": test, "seed": seed}
    single = y.reshape(-1) if y.shape[1:] == (1,) else y
    classes = single.dtype.kind in "iubU" and single.ndim == 1
    if goal is Goal.CLASSIFICATION or (goal is Goal.AUTO and classes):
        labels, numbers = _classes(file, targets, single)
        return Classification.from_arrays(file.name, x, numbers, labels=labels, **shares)
    return Regression.from_arrays(file.name, x, y, standardize=True, **shares)


def _check(file: Path, name: str, array: "np.ndarray[Any, Any]") -> None:
    if array.dtype.kind not in "iufb" or not array.ndim or not array.size:
        raise UsageError(
            f"{file}: array {name!r} contains {array.dtype} of shape {array.shape}; expected "
            "numbers [n, ...]"
        )


def _classes(
    file: Path, name: str, targets: "np.ndarray[Any, Any]"
) -> "tuple[list[str], np.ndarray[Any, Any]]":
    """Return the names of the classes, and each target's class number.

    Raises:
        UsageError: They are not classes, or nearly every row has a class of its own.
    """
    import numpy as np

    what = f"{file}: array {name!r}"
    fraction = (
        targets.dtype.kind == "f"
        and not (
            np.isfinite(targets) & (targets == np.floor(targets)) & (abs(targets) <= _EXACT)
        ).all()
    )
    if targets.ndim != 1 or targets.dtype.kind not in "iufbU" or fraction:
        raise UsageError(
            f"{what} contains {targets.dtype} of shape {targets.shape}; expected classes [n], "
            "integers or words"
        )
    plain = targets.astype(np.int64) if targets.dtype.kind == "f" else targets
    found, numbers = np.unique(plain, return_inverse=True)
    if len(found) > len(targets) / 2:
        raise UsageError(
            f"{what} has {len(found)} classes in {len(targets)} rows: to predict numbers, pass "
            "-o task.goal=regression"
        )
    return list(map(str, found.tolist())), numbers


def _read(file: Path) -> "dict[str, np.ndarray[Any, Any]]":
    import numpy as np

    try:
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise UsageError(
                f"{file} has one array; expected two named ones, as numpy.savez writes them"
            )
        with opened:
            return {name: opened[name] for name in opened.files}
    except UsageError:
        raise
    except Exception as error:  # a damaged file can raise any error in numpy
        reason = getattr(error, "strerror", None) or str(error).split("\n", 1)[0]
        raise UsageError(f"cannot read {file} as .npz: {reason}") from error


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"npz": npz}
