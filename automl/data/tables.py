"""Turns a table of text into a task: infers column kinds, and fits encodings on training rows."""

import functools
import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, cast

from automl.data.arrays import Classification, Regression, random_splits, standardizing
from automl.errors import UnknownNameError, UsageError
from automl.plugin.protocols import Split, Task
from automl.plugin.report import Direction
from automl.portable.cells import (
    MISSING,
    Cells,
    category,
    cleaned,
    has_decimal_comma,
    is_infinite,
    is_number,
    pointed,
    with_point,
)
from automl.text.formatting import counted

if TYPE_CHECKING:
    from torch import Tensor

    from automl.portable.columns import Categories, Numbers, Preparation

_log = logging.getLogger("automl")

Table = Mapping[str, Cells]
"""Cells by column, None for those without a value; all columns have the same length."""
_LEAST = 5
"""The smallest number of rows that leaves some for each split."""
_FEW = 20
"""The largest number of whole numbers in a target, or words in a column, read as categories."""


class Goal(Enum):
    """The kind of target. AUTO predicts numbers, unless there are only a few whole numbers."""

    AUTO = "auto"
    CLASSIFICATION = "classification"
    REGRESSION = "regression"


@dataclass(frozen=True)
class Reading:
    """How to read a table.

    Attributes:
        target: The column to predict; by default the last one.
        goal: Whether to predict classes or numbers; by default inferred from the target.
        categorical: Columns to read as categories.
        numeric: Columns to read as numbers.
        ignore: Columns to leave out.
        missing: Words that mean a missing value, in any case; empty cells are always missing.
        decimal: The decimal sign of numbers, a point or a comma.
        quantiles: Map numbers to a normal distribution by rank, instead of shifting and scaling.
        categories: The largest number of categories of one column; rarer ones are merged.
        weighted: Give all classes the same total weight in the loss.
        validation: The share of rows to validate on.
        test: The share of rows to test on.
        seed: The seed of the random split.

    Raises:
        UsageError: `categories` is less than 1, or `decimal` is another sign.
    """

    target: str | None = None
    goal: Goal = Goal.AUTO
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    missing: tuple[str, ...] = MISSING
    decimal: str = "."
    quantiles: bool = True
    categories: int = 64
    weighted: bool = False
    validation: float = 0.2
    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.categories < 1:
            raise UsageError(f"task.categories must be at least 1, got {self.categories}")
        if self.decimal not in (".", ","):
            raise UsageError(f"task.decimal must be a point or a comma, got {self.decimal!r}")


def with_reading(factory: Callable[..., Task]) -> Callable[..., Task]:
    """Add every field of Reading to a task factory's options, so that all tables share them.

    Args:
        factory: A function with keyword-only parameters, one of which is `reading`. It receives
            the Reading made from the options.
    """
    signature, fields = inspect.signature(factory), inspect.signature(Reading).parameters
    own = [each for name, each in signature.parameters.items() if name != "reading"]
    shared = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in fields.values()]

    @functools.wraps(factory)
    def made(**options: Any) -> Task:
        reading = Reading(**{name: options.pop(name) for name in fields if name in options})
        return factory(**options, reading=reading)

    made.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    texts = (inspect.getdoc(factory), inspect.getdoc(Reading))
    made.__doc__ = "\n\n".join(text for text in texts if text)
    return made


@dataclass(frozen=True, eq=False)
class TableClassification(Classification):
    """Classification of table rows, with metrics that account for rare classes.

    Attributes:
        weighted: Whether the loss gives all classes the same total weight.
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


def area_under_curve(scores: "Tensor", targets: "Tensor") -> float:
    """Return the probability that a positive example scores higher; ties count half.

    Source: H. B. Mann, D. R. Whitney: On a Test of Whether One of Two Random Variables Is
    Stochastically Larger, 1947.

    Args:
        scores: Scores [n].
        targets: Classes 0 or 1 [n].

    Returns:
        A value in [0, 1]; 0.5 if one of the classes is missing, NaN if a score is NaN.
    """
    import torch

    if scores.isnan().any():
        return math.nan

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
    """Make a task that predicts one column of a table from the others.

    Args:
        name: The task's name, for messages.
        table: Cells by column: text, or None for a missing value.
        reading: How to read the table.
        test: Separate rows to test on; by default a share of the table.

    Raises:
        UsageError: A column does not exist, the target cannot be learned, or no column is useful.
    """
    return _Maker(name, table, reading or Reading(), test).task()


@dataclass(frozen=True)
class _Maker:
    """Builds a task from one table."""

    name: str
    raw: Table
    reading: Reading
    extra: Table | None

    def task(self) -> Classification | Regression:
        self._check_rows()
        return self._classification() if self.is_classification else self._regression()

    def _classification(self) -> TableClassification:
        import torch

        spelled = self._spelled()
        known = sorted(spelled, key=_natural)
        numbers = {label: number for number, label in enumerate(known)}
        classes = torch.tensor([numbers[category(cell)] for cell in self.target])
        labels = tuple(spelled[label] for label in known)
        splits = self._splits(classes.numpy())
        made, inputs = self._prepared(splits, labels=labels)
        return TableClassification(
            self.name, inputs, classes, splits, preparation=made, weighted=self.reading.weighted
        )

    def _regression(self) -> Regression:
        import torch

        self._check_numbers(self.target_name, self.target)
        values = torch.tensor([[float(cell)] for cell in self.target], dtype=torch.float64)
        splits = self._splits(None)
        unit = standardizing(values[splits[Split.TRAIN]])
        made, inputs = self._prepared(splits, targets=unit)
        return Regression(self.name, inputs, unit.apply(values), splits, preparation=made)

    # The target.
    def _spelled(self) -> dict[str, str]:
        """Return the classes with their most frequent spelling."""
        found: dict[str, str] = {}
        for cell, _ in Counter(self.target).most_common():
            found.setdefault(category(cell), cell)
        self._refuse_untrained({category(cell) for cell in self.target[: self.ours]}, found)
        return found

    def _refuse_untrained(self, trained: Collection[str], spelled: Mapping[str, str]) -> None:
        """Raise UsageError if the test file has a class that the training file lacks."""
        new = [cell for label, cell in spelled.items() if label not in trained]
        if new:
            known = ", ".join(sorted({spelled[label] for label in trained}, key=_natural)[:5])
            numbers = all(map(is_number, spelled))
            hint = "; to predict numbers, pass -o task.goal=regression" if numbers else ""
            raise self._unusable(
                f"has the value {new[0]!r} only in the test file; the training file has: {known}: "
                f"use the same spelling, or remove these rows{hint}"
            )

    @cached_property
    def target_name(self) -> str:
        name = self.reading.target or list(self.raw)[-1]
        if name not in self.raw:
            raise UnknownNameError(f"target column of task {self.name}", name, self.raw)
        return name

    @cached_property
    def tables(self) -> list[Table]:
        """The training table and the test table, which must have the same columns."""
        if self.extra is None:
            return [self.raw]
        for name in self.raw:
            if name not in self.extra:
                raise UsageError(f"task {self.name}: the test file has no column {name!r}")
        return [self.raw, self.extra]

    @cached_property
    def table(self) -> dict[str, list[str | None]]:
        """All rows with a known target; test rows come last."""
        whole = {
            name: self._cleaned([cell for each in self.tables for cell in each[name]])
            for name in self.raw
        }
        known = [cell is not None for cell in whole[self.target_name]]
        if not all(known):
            self._warn_left_out([cell for each in self.tables for cell in each[self.target_name]])
        kept = {name: list(compress(cells, known)) for name, cells in whole.items()}
        return {**kept, self.target_name: self._pointed(self.target_name, kept[self.target_name])}

    def _pointed(self, name: str, cells: Cells) -> list[str | None]:
        """Replace decimal commas by points, if the file uses them and the column is numeric."""
        if self.reading.decimal == ".":
            return list(cells)
        own = {cell for cell in cells[: len(cells) - self.tested] if cell is not None}
        if not all(is_number(with_point(cell)) for cell in own):
            return list(cells)
        try:
            return pointed(cells)
        except ValueError as error:
            raise UsageError(f"task {self.name}: column {name!r} {error}") from error

    def _cleaned(self, cells: Cells) -> list[str | None]:
        return cleaned(cells, self.reading.missing)

    def _warn_left_out(self, targets: Cells) -> None:
        """Warn about the number of rows without a target, and the words that mark them."""
        kept = zip(targets, self._cleaned(targets), strict=True)
        gone = [(raw or "").strip() for raw, cell in kept if cell is None]
        words = sorted(set(gone) - {""})
        marked = f", including those with {' or '.join(map(repr, words))}" if words else ""
        hint = "; if this is a class, set the missing words with -o task.missing=…" if words else ""
        self._warn(f"{len(gone)} rows without a target are left out{marked}{hint}")

    @cached_property
    def tested(self) -> int:
        """The number of rows at the end that come from the test file."""
        cells = [cell for each in self.tables[1:] for cell in each[self.target_name]]
        return sum(cell is not None for cell in self._cleaned(cells))

    @property
    def ours(self) -> int:
        """The number of rows at the start to learn from."""
        return len(self.target) - self.tested

    @property
    def target(self) -> list[str]:
        return cast(list[str], self.table[self.target_name])

    @cached_property
    def is_classification(self) -> bool:
        goal, own = self.reading.goal, self.target[: self.ours]
        distinct = set(own)
        self._refuse_infinite(self.target_name, set(self.target))
        odd = [cell for cell in own if not is_number(cell)]
        known = set(map(category, distinct))
        if len(known) < 2:
            found = f"only {own[0]!r}" if own else "nothing"
            raise self._unusable(f"contains {found}: there is nothing to learn")
        if goal is not Goal.CLASSIFICATION and odd:
            self._refuse_commas(distinct)
        if goal is Goal.REGRESSION and odd:
            raise self._unusable(f"contains {odd[0]!r}, which is not a number")
        few = not odd and len(known) <= _FEW and all(float(c).is_integer() for c in own)
        classes = goal is Goal.CLASSIFICATION or (goal is Goal.AUTO and (bool(odd) or few))
        if classes and len(known) > len(own) / 2:
            count = f"has {len(known)} classes in {len(own)} rows"
            raise self._unusable(f"{count}: choose another with -o task.target")
        return classes

    def _refuse_infinite(self, name: str, distinct: Collection[str]) -> None:
        """Raise UsageError if a column of numbers holds infinite values."""
        infinite = [cell for cell in distinct if is_infinite(cell)]
        if infinite and all(is_number(cell) for cell in distinct if not is_infinite(cell)):
            raise UsageError(
                f"task {self.name}: column {name!r} contains {infinite[0]!r}: empty these cells"
            )

    def _refuse_commas(self, distinct: Collection[str]) -> None:
        """Raise UsageError if a target read as words consists of numbers with decimal commas."""
        if pointed := _with_comma(distinct):
            raise self._unusable(
                f"contains {pointed!r}: pass '-o task.decimal=,' for decimal commas, or "
                "'-o task.goal=classification' for classes"
            )

    def _unusable(self, why: str) -> UsageError:
        return UsageError(f"task {self.name}: target {self.target_name!r} {why}")

    # The rows.
    def _check_rows(self) -> None:
        """Raise UsageError if either file has too few rows."""
        if self.extra is not None and not self.tested:
            raise UsageError(
                f"task {self.name}: no row of the test file has a target {self.target_name!r}: "
                "leave the file out, and predict it with an exported model"
            )
        if self.ours < _LEAST:
            raise UsageError(
                f"task {self.name}: {counted(self.ours, 'row')} with a target: too few to train, "
                f"validate and test, which takes at least {_LEAST}"
            )

    def _splits(self, classes: Any) -> "dict[Split, Tensor]":
        import torch

        rows, ours, reading = len(self.target), self.ours, self.reading
        classes = self._without_rare(classes, ours)
        share = None if self.tested else reading.test
        splits = random_splits(self.name, ours, reading.validation, share, reading.seed, classes)
        return splits | ({Split.TEST: torch.arange(ours, rows)} if self.tested else {})

    def _without_rare(self, classes: Any, ours: int) -> Any:
        """Return the classes to stratify by; classes too rare for every split are merged."""
        if classes is None:
            return None
        classes = classes[:ours].copy()
        rare = [c for c, count in Counter(classes.tolist()).items() if count < 3]
        for each in rare:
            classes[classes == each] = -1
        few = 0 < (classes == -1).sum() < 3
        return None if few else classes

    # The columns.
    def _prepared(
        self, splits: "Mapping[Split, Tensor]", **of_target: Any
    ) -> "tuple[Preparation, Tensor]":
        """Return the fitted preparation, and the inputs that it makes."""
        from automl.portable.columns import Columns, Preparation

        found = list(self._columns(splits[Split.TRAIN].tolist()))
        if not found:
            raise UsageError(f"task {self.name}: no useful column to learn from")
        kept = tuple(column for column, _ in found)
        columns = Columns(kept, self.reading.missing, self.reading.decimal)
        inputs = columns.inputs({column.name: cells for column, cells in found})
        return Preparation(columns, self.target_name, **of_target), inputs

    def _columns(self, rows: Sequence[int]) -> "Iterator[tuple[Numbers | Categories, Cells]]":
        """Yield the useful columns, fitted on training rows, and their cells."""

        reading = self.reading
        for name in (*reading.categorical, *reading.numeric, *reading.ignore):
            if name not in self.table:
                raise UnknownNameError(f"column of task {self.name}", name, self.table)
        for name, cells in self.table.items():
            if name != self.target_name and name not in reading.ignore:
                read = cells if name in reading.categorical else self._pointed(name, cells)
                if column := self._column(name, rows, read):
                    yield column, read

    def _column(
        self, name: str, rows: Sequence[int], whole: Cells
    ) -> "Numbers | Categories | None":
        """Fit one column on training rows; None if it carries no information.

        Its kind follows from the training file; test cells that do not fit are an error.
        """
        from automl.portable.columns import Categories, Numbers

        reading = self.reading
        cells = [whole[row] for row in rows]
        distinct = {cell for cell in whole[: self.ours] if cell is not None}
        numbers = name not in reading.categorical and self._is_numeric(name, distinct)
        if numbers:
            self._check_numbers(name, whole)
        if len({cell if cell is None else category(cell) for cell in set(cells)}) < 2:
            self._warn(f"column {name!r} is left out: it is the same in every row")
            return None
        if numbers:
            return Numbers.fit(name, cells, reading.quantiles)
        if name not in reading.categorical:
            if pointed := _with_comma(distinct):
                hint = "for decimal commas, pass '-o task.decimal=,'"
                self._warn(f"column {name!r} contains {pointed!r}: {hint}")
            if len(distinct) > max(_FEW, self.ours / 2):
                self._warn(f"column {name!r} is left out: its text differs in nearly every row")
                return None
        return Categories.fit(name, cells, reading.categories)

    def _is_numeric(self, name: str, distinct: Collection[str]) -> bool:
        """Return whether a column holds only numbers.

        Raises:
            UsageError: It holds infinite numbers, or must be numeric and is not.
        """
        self._refuse_infinite(name, distinct)
        odd = sorted(cell for cell in distinct if not is_number(cell))
        if odd and name in self.reading.numeric:
            raise UsageError(
                f"task {self.name}: column {name!r} contains {odd[0]!r}, which is not a number"
            )
        return not odd

    def _check_numbers(self, name: str, whole: Cells) -> None:
        """Raise UsageError if a numeric column has other cells in the test file."""
        odd = [cell for cell in whole[self.ours :] if cell is not None and not is_number(cell)]
        kind = "goal=classification" if name == self.target_name else f"categorical={name}"
        if odd:
            raise UsageError(
                f"task {self.name}: column {name!r} contains {odd[0]!r} in the test file, but only "
                f"numbers in the training file: fix the cell, or pass -o task.{kind}"
            )

    def _warn(self, what: str) -> None:
        _log.warning("task %s: %s", self.name, what)


def _with_comma(distinct: Collection[str]) -> str | None:
    """Return a cell with a decimal comma, if all cells are numbers; otherwise None."""
    commas = [cell for cell in distinct if has_decimal_comma(cell)]
    alike = len(commas) + sum(map(is_number, distinct)) == len(distinct)
    return min(commas) if commas and alike else None


def _natural(label: str) -> tuple[bool, float, str]:
    """Sort key: numbers by value, before words."""
    number = is_number(label)
    return not number, float(label) if number else 0.0, label
