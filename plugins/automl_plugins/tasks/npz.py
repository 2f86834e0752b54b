"""NPZ: arrays in a file of numpy's, inputs and targets by name."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl import Classification, Goal, Regression, Task, UsageError, hookimpl

if TYPE_CHECKING:
    import numpy as np


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

    goal: whole numbers are classes, others are to be predicted, standardised, unless it says
    otherwise. inputs, targets: the arrays' names.

    Raises:
        UsageError: the file or an array is not there, or cannot be learned; the text names it.
    """
    arrays = _read(file)
    missing = [name for name in (inputs, targets) if name not in arrays]
    if missing:
        known = ", ".join(arrays) or "none"
        raise UsageError(f"{file} has no array {missing[0]!r}; there are: {known}")
    x, y = arrays[inputs], arrays[targets]
    shares = {"validation": validation, "test": test, "seed": seed}
    classes = y.dtype.kind in "iu" and y.ndim == 1
    if goal is Goal.CLASSIFICATION or (goal is Goal.AUTO and classes):
        return Classification.from_arrays(file.name, x, y, **shares)  # type: ignore[arg-type]
    return Regression.from_arrays(file.name, x, y, **shares).standardized()  # type: ignore[arg-type]


def _read(file: Path) -> "dict[str, np.ndarray[Any, Any]]":
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UsageError(f"cannot read {file} as .npz: {reason}") from error


@hookimpl
def register_tasks() -> Mapping[str, Callable[..., Task]]:
    return {"npz": npz}
