"""A table of text becomes a task: kinds of columns inferred, encodings fitted on training rows."""

import functools
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from automl.errors import UnknownNameError, UsageError
from automl.protocols import Split, Task
from automl.report import Direction
from automl.tasks import Classification, Regression, random_splits

if TYPE_CHECKING:
    from torch import Tensor

    from automl.portable.columns import Categories, Columns, Numbers, Preparation

_log = logging.getLogger("automl")

Table = Mapping[str, Sequence[str]]
"""Cells by column; all columns have the same length."""
_FEW = 20
"""So many whole numbers in a target are taken for classes, and so many words for categories."""


class Goal(Enum):
    """What the target is; AUTO: numbers but for a few whole ones are to be predicted as such."""

    AUTO = "auto"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True)
class Reading:
    """How a table is read.

    target: the column to predict, by default the last. categorical, numeric: columns whose kind is
    not to be inferred. ignore: columns to leave out. quantiles: map numbers to a normal
    distribution by their rank, else only shift and scale them. categories: the most that one
    column may have, rarer ones are one. weighted: count rare classes as much as frequent ones in
    the loss. validation, test: shares of the rows; seed: of the split.
    """

    target: str | None = None
    goal: Goal = Goal.AUTO
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    quantiles: bool = True
    categories: int = 64
    weighted: bool = False
    validation: float = 0.2
    test: float = 0.2
    seed: int = 0


def with_reading(factory: Callable[..., Task]) -> Callable[..., Task]:
    """Give a task's factory every field of a Reading as an option, so that all tables share them.

    factory: a function of keyword-only parameters, one of which is `reading`; it gets the Reading
    that the options make.
    """
    signature, fields = inspect.signature(factory), inspect.signature(Reading).parameters
    own = [each for name, each in signature.parameters.items() if name != "reading"]
    shared = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in fields.values()]

    @functools.wraps(factory)
    def made(**options: Any) -> Task:
        reading = Reading(**{name: options.pop(name) for name in fields if name in options})
        return factory(**options, reading=reading)

    made.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return made


@dataclass(frozen=True, eq=False)
class TableClassification(Classification):
    """Classes from the rows of a table, with metrics that rare classes show in.

    weighted: the loss counts each class as much as any other.
    """

    weighted: bool = field(default=False, kw_only=True)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        names = ["accuracy", "balanced_accuracy", *(["auc"] if self.classes == 2 else [])]
        return {**dict.fromkeys(names, Direction.MAXIMIZE), "loss": Direction.MINIMIZE}

    def loss(self, outputs: "Tensor", targets: "Tensor") -> "Tensor":
        from torch.nn.functional import cross_entropy

        weight = self._weights.to(outputs) if self.weighted else None
        return cross_entropy(outputs, targets, weight)

    def evaluate(self, outputs: "Tensor", targets: "Tensor") -> Mapping[str, float]:
        found = {**super().evaluate(outputs, targets)}
        right = (outputs.argmax(-1) == targets).double()
        recalls = [right[targets == c].mean() for c in sorted(set(targets.tolist()))]
        found["balanced_accuracy"] = float(sum(recalls) / len(recalls))
        if self.classes == 2:
            found["auc"] = area_under_curve(outputs[:, 1] - outputs[:, 0], targets)
        return found

    @cached_property
    def _weights(self) -> "Tensor":
        counts = self.split(Split.TRAIN)[1].bincount(minlength=self.classes).clamp(min=1)
        weights: Tensor = counts.sum() / (counts * self.classes)
        return weights


@dataclass(frozen=True, eq=False)
class TableRegression(Regression):
    """Numbers from the rows of a table; `rmse` and `mae` are in the target's own unit."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        return {"r2": Direction.MAXIMIZE, **dict.fromkeys(("rmse", "mae"), Direction.MINIMIZE)}

    def evaluate(self, outputs: "Tensor", targets: "Tensor") -> Mapping[str, float]:
        unit = self.preparation.scale if self.preparation else 1.0
        errors = (outputs.double() - targets.double()) * unit
        rmse, mae = errors.square().mean().sqrt(), errors.abs().mean()
        r2 = super().evaluate(outputs, targets)["r2"]
        return {"r2": r2, "rmse": float(rmse), "mae": float(mae)}


def area_under_curve(scores: "Tensor", targets: "Tensor") -> float:
    """The chance that a positive example has the higher score, ties counting half.

    scores: [n]; targets: 0 or 1 [n]. 0.5 where one of the two is missing. Source: H. B. Mann,
    D. R. Whitney: On a Test of Whether One of Two Random Variables Is Stochastically Larger, 1947.
    """
    import torch

    _, places, counts = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts.double() - 1) / 2)[places]
    positive = int(targets.sum())
    negative = len(targets) - positive
    if not positive or not negative:
        return 0.5
    above = ranks[targets == 1].sum() - positive * (positive + 1) / 2
    return float(above / (positive * negative))


def table_task(
    name: str, table: Table, reading: Reading | None = None, test: Table | None = None
) -> Classification | Regression:
    """The task of predicting one column of a table from the others.

    test: rows of their own to test on; else a share of the table is.

    Raises:
        UsageError: no such column, a target that cannot be learned, or columns without anything to
            learn from.
    """
    return _Maker(name, table, reading or Reading(), test).task()


@dataclass(frozen=True)
class _Maker:
    """One table on its way to a task."""

    name: str
    raw: Table
    reading: Reading
    extra: Table | None

    def task(self) -> Classification | Regression:
        return self._classification() if self.is_classification else self._regression()

    def _classification(self) -> TableClassification:
        import torch

        labels = tuple(sorted(set(self.target), key=_natural))
        numbers = {label: number for number, label in enumerate(labels)}
        classes = torch.tensor([numbers[cell] for cell in self.target])
        splits = self._splits(classes.numpy())
        made = self._preparation(splits, labels=labels)
        inputs, weighted = made.columns.encode(self.table), self.reading.weighted
        return TableClassification(
            self.name, inputs, classes, splits, preparation=made, weighted=weighted
        )

    def _regression(self) -> TableRegression:
        import torch

        values = torch.tensor([float(cell) for cell in self.target], dtype=torch.float64)
        splits = self._splits(None)
        known = values[splits[Split.TRAIN]]
        shift, scale = float(known.mean()), float(known.std(correction=0)) or 1.0
        made = self._preparation(splits, shift=shift, scale=scale)
        scaled = ((values - shift) / scale).float().unsqueeze(1)
        inputs = made.columns.encode(self.table)
        return TableRegression(self.name, inputs, scaled, splits, preparation=made)

    # The target.
    @cached_property
    def target_name(self) -> str:
        name = self.reading.target or list(self.raw)[-1]
        if name not in self.raw:
            raise UnknownNameError(f"target column of task {self.name}", name, self.raw)
        return name

    @cached_property
    def table(self) -> dict[str, list[str]]:
        """All rows whose target is known; those to test on come last."""
        from automl.portable.columns import is_missing

        tables = [self.raw, *([self.extra] if self.extra is not None else [])]
        for name in self.raw:
            if any(name not in each for each in tables):
                raise UsageError(f"task {self.name}: the test file has no column {name!r}")
        whole = {name: [cell for each in tables for cell in each[name]] for name in self.raw}
        known = [not is_missing(cell) for cell in whole[self.target_name]]
        if not all(known):
            left_out = len(known) - sum(known)
            _log.warning("task %s: %d rows without a target are left out", self.name, left_out)
        return {
            name: [cell.strip() for cell, keep in zip(cells, known, strict=True) if keep]
            for name, cells in whole.items()
        }

    @cached_property
    def tested(self) -> int:
        """How many of the last rows are the test file's."""
        from automl.portable.columns import is_missing

        cells = self.extra[self.target_name] if self.extra is not None else ()
        return sum(not is_missing(cell) for cell in cells)

    @property
    def target(self) -> list[str]:
        return self.table[self.target_name]

    @cached_property
    def is_classification(self) -> bool:
        from automl.portable.columns import is_number

        goal, distinct = self.reading.goal, set(self.target)
        self._refuse_infinite(self.target_name, distinct)
        odd = [cell for cell in self.target if not is_number(cell)]
        if len(distinct) < 2:
            found = f"only {self.target[0]!r}" if self.target else "nothing"
            raise self._unusable(f"holds {found}: nothing to learn")
        if goal is Goal.REGRESSION and odd:
            raise self._unusable(f"holds {odd[0]!r}, which is no number to predict")
        few = len(distinct) <= _FEW and all(float(c).is_integer() for c in distinct if not odd)
        classes = goal is Goal.CLASSIFICATION or (goal is Goal.AUTO and (bool(odd) or few))
        if classes and len(distinct) > len(self.target) / 2:
            said = f"has {len(distinct)} classes in {len(self.target)} rows"
            raise self._unusable(f"{said}: name another by -o task.target")
        return classes

    def _refuse_infinite(self, name: str, distinct: Collection[str]) -> None:
        """Raise UsageError where numbers are mixed with infinite ones, which nobody means."""
        from automl.portable.columns import is_infinite, is_number

        infinite = [cell for cell in distinct if is_infinite(cell)]
        if infinite and all(is_number(cell) for cell in distinct if not is_infinite(cell)):
            raise UsageError(
                f"task {self.name}: column {name!r} holds {infinite[0]!r}: leave such cells empty"
            )

    def _unusable(self, why: str) -> UsageError:
        return UsageError(f"task {self.name}: target {self.target_name!r} {why}")

    # The rows.
    def _splits(self, classes: Any) -> "dict[Split, Tensor]":
        import torch

        if self.extra is not None and not self.tested:
            raise UsageError(
                f"task {self.name}: no row of the test file has a target {self.target_name!r}: "
                "leave the file out, and predict it once a model is exported"
            )
        rows, reading = len(self.target), self.reading
        ours = rows - self.tested
        if ours < 5:
            raise UsageError(f"task {self.name}: {ours} rows are too few to train and choose by")
        classes = self._without_rare(classes, ours)
        share = None if self.tested else reading.test
        splits = random_splits(self.name, ours, reading.validation, share, reading.seed, classes)
        return splits | ({Split.TEST: torch.arange(ours, rows)} if self.tested else {})

    def _without_rare(self, classes: Any, ours: int) -> Any:
        """Classes to keep in proportion; those too rare for every split are one among them."""
        if classes is None:
            return None
        classes = classes[:ours].copy()
        rare = [c for c, count in Counter(classes.tolist()).items() if count < 3]
        for each in rare:
            classes[classes == each] = -1
        few = 0 < (classes == -1).sum() < 3
        return None if few else classes

    # The columns.
    def _preparation(self, splits: "Mapping[Split, Tensor]", **of_target: Any) -> "Preparation":
        from automl.portable.columns import Preparation

        return Preparation(
            self._columns(splits[Split.TRAIN].tolist()), self.target_name, **of_target
        )

    def _columns(self, rows: Sequence[int]) -> "Columns":
        from automl.portable.columns import Columns

        reading = self.reading
        for name in (*reading.categorical, *reading.numeric, *reading.ignore):
            if name not in self.table:
                raise UnknownNameError(f"column of task {self.name}", name, self.table)
        found = []
        for name, cells in self.table.items():
            if name != self.target_name and name not in reading.ignore:
                column = self._column(name, [cells[row] for row in rows], cells)
                found += [column] if column else []
        if not found:
            raise UsageError(f"task {self.name}: no column is left to learn from")
        return Columns(tuple(found))

    def _column(
        self, name: str, cells: list[str], whole: Collection[str]
    ) -> "Numbers | Categories | None":
        """How one column is read, learned from training cells; None where it says nothing."""
        from automl.portable.columns import Categories, Numbers, is_missing, is_number

        reading, known = self.reading, [cell for cell in whole if not is_missing(cell)]
        distinct = set(known)
        self._refuse_infinite(name, distinct)
        numbers = name not in reading.categorical and all(map(is_number, distinct))
        if name in reading.numeric and not numbers:
            odd = next(cell for cell in known if not is_number(cell))
            raise UsageError(f"task {self.name}: column {name!r} holds {odd!r}, which is no number")
        if all(map(is_missing, cells)) or len(set(cells)) < 2:
            return self._leave_out(name, "it says the same in every row")
        if numbers:
            return Numbers.fit(name, cells, reading.quantiles)
        names = len(distinct) > max(_FEW, len(whole) / 2)
        if names and name not in reading.categorical:
            pointed = all(is_number(cell.replace(",", ".", 1)) for cell in distinct)
            hint = "; write decimals with a point, not a comma" * pointed
            return self._leave_out(name, f"nearly every row has another text{hint}")
        return Categories.fit(name, cells, reading.categories)

    def _leave_out(self, name: str, why: str) -> "Numbers | Categories | None":
        _log.warning("task %s: column %r is left out: %s", self.name, name, why)
        return None


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    from automl.portable.columns import is_number

    number = is_number(label)
    return not number, float(label) if number else 0.0, label
