"""Classification: a task from arrays, so that a data set becomes a task in a few lines."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from automl.candidate import Signature
from automl.errors import UsageError
from automl.protocols import Split, Task
from automl.report import Direction

if TYPE_CHECKING:
    from torch import Tensor

_PROBE = 10


@dataclass(frozen=True, eq=False)
class Classification:
    """Classes from inputs: cross-entropy, accuracy and loss.

    inputs: floats [n, *input_shape] of all examples; targets: class numbers [n].
    splits: the row numbers of each split; they must not overlap.

    Raises:
        UsageError: NaN or infinite inputs, targets that are no class numbers, overlapping or
            empty splits; the text names the split and the first bad row.
    """

    name: str
    inputs: "Tensor"
    targets: "Tensor"
    splits: Mapping[Split, "Tensor"]
    classes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", int(self.targets.max()) + 1)
        self._check()

    @classmethod
    def from_arrays(
        cls,
        name: str,
        inputs: Any,
        targets: Any,
        *,
        validation: float = 0.2,
        test: float = 0.2,
        seed: int = 0,
    ) -> "Classification":
        """Split arrays at random, each class in proportion; seed and shares fix the split."""
        import numpy as np
        import torch
        from sklearn.model_selection import train_test_split

        if not (validation > 0 and test > 0 and validation + test < 1):
            raise UsageError(
                f"task {name}: validation and test must be shares above 0 that leave some to "
                f"train on, got {validation:g} and {test:g}"
            )
        labels = _class_numbers(name, np.asarray(targets))
        rows = np.arange(len(labels))
        held = {"random_state": seed}
        rest, tested = train_test_split(rows, test_size=test, stratify=labels, **held)
        share = validation / (1 - test)
        train, valid = train_test_split(rest, test_size=share, stratify=labels[rest], **held)
        splits = {Split.TRAIN: train, Split.VALIDATION: valid, Split.TEST: tested}
        return cls(
            name,
            torch.as_tensor(np.asarray(inputs), dtype=torch.float32),
            torch.as_tensor(labels, dtype=torch.int64),
            {split: torch.as_tensor(np.sort(part)) for split, part in splits.items()},
        )

    @property
    def signature(self) -> Signature:
        return Signature(tuple(self.inputs.shape[1:]), (self.classes,))

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return {"accuracy": Direction.MAXIMIZE, "loss": Direction.MINIMIZE}

    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        hashed = hashlib.blake2b(digest_size=16)
        parts = {"inputs": self.inputs, "targets": self.targets}
        parts |= {split.value: rows for split, rows in self.splits.items()}
        for name, tensor in parts.items():
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            hashed.update(tensor.contiguous().numpy().tobytes())
        return hashed.hexdigest()

    @cached_property
    def _parts(self) -> dict[Split, "tuple[Tensor, Tensor]"]:
        return {s: (self.inputs[rows], self.targets[rows]) for s, rows in self.splits.items()}

    def split(self, split: Split) -> "tuple[Tensor, Tensor]":
        return self._parts[split]

    def probe(self) -> "tuple[Tensor, Tensor]":
        inputs, targets = self.split(Split.TRAIN)
        return inputs[:_PROBE], targets[:_PROBE]

    def loss(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets)

    def evaluate(self, outputs: "Tensor", targets: "Tensor") -> Mapping[str, float]:
        accuracy = (outputs.argmax(-1) == targets).double().mean()
        return {"accuracy": float(accuracy), "loss": float(self.loss(outputs, targets))}

    def _check(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise UsageError(
                f"task {self.name}: {len(self.inputs)} inputs but {len(self.targets)} targets"
            )
        if int(self.targets.min()) < 0 or self.classes < 2:
            raise UsageError(
                f"task {self.name}: targets must be class numbers 0, 1, … of two classes or more"
            )
        seen = 0
        for split, rows in self.splits.items():
            seen += len(rows)
            self._check_split(split, rows)
        if len(set().union(*(rows.tolist() for rows in self.splits.values()))) != seen:
            raise UsageError(f"task {self.name}: its splits overlap")

    def _check_split(self, split: Split, rows: "Tensor") -> None:
        if not len(rows):
            raise UsageError(f"task {self.name}: split {split.value} is empty")
        finite = self.inputs[rows].isfinite().flatten(1).all(1)
        if not finite.all():
            row = int(rows[(~finite).nonzero()[0, 0]])
            raise UsageError(_not_finite(f"task {self.name}", row, split))


def check_inputs(label: str, task: Task) -> None:
    """Look at what a task trains and chooses by; one without tensors passes.

    Raises:
        UsageError: NaN or infinite inputs; the text names the split and the first bad row.
    """
    if isinstance(task, Classification):
        return  # it has looked at its rows already
    for split in (Split.TRAIN, Split.VALIDATION):
        try:
            inputs, _ = task.split(split)
            finite = inputs.isfinite().flatten(1).all(1)
        except (NotImplementedError, AttributeError):
            return
        if not finite.all():
            raise UsageError(_not_finite(label, int((~finite).nonzero()[0, 0]), split))


def _not_finite(label: str, row: int, split: Split) -> str:
    return (
        f"{label}: row {row} of split {split.value} holds NaN or infinity: clean or impute the "
        "data first"
    )


def _class_numbers(name: str, targets: Any) -> Any:
    """Targets [n] as whole numbers.

    Raises:
        UsageError: they are scores, words or real numbers.
    """
    import numpy as np

    what, mend = "", ""
    if targets.ndim != 1:
        what, mend = f"have shape {targets.shape}", "give one class number a row, as by argmax(1)"
    elif targets.dtype.kind not in "iufb":
        what, mend = f"are {targets.dtype}", "number them: np.unique(targets, return_inverse=True)"
    elif targets.dtype.kind == "f" and not (targets == np.floor(targets)).all():
        what, mend = "are real numbers", "for regression write a task of your own"
    if what:
        raise UsageError(f"task {name}: targets {what}; expected class numbers [n]: {mend}")
    return targets.astype(np.int64)
