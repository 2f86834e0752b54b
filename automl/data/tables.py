"""A table of text becomes a task: kinds of columns inferred, encodings fitted on training rows."""

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
"""So few rows still leave some to each split."""
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
    not to be inferred. ignore: columns to leave out. missing: words that say no value, in any
    case, as an empty cell does. decimal: the point or comma in numbers. quantiles: map numbers to
    a normal distribution by their rank, else only shift and scale them. categories: the most that
    one column may have, rarer ones are one. weighted: count rare classes as much as frequent ones
    in the loss. validation, test: shares of the rows; seed: of the split.

    Raises:
        UsageError: less than one category, or another decimal sign.
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


def area_under_curve(scores: "Tensor", targets: "Tensor") -> float:
    """The chance that a positive example has the higher score, ties counting half.

    scores: [n]; targets: 0 or 1 [n]. 0.5 where one of the two is missing, NaN where a score is.
    Source: H. B. Mann, D. R. Whitney: On a Test of Whether One of Two Random Variables Is
    Stochastically Larger, 1947.
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
    """The task of predicting one column of a table from the others.

    Cells are text, or None where there is no value. test: rows of their own to test on; else a
    share of the table is.

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
        """The classes that there are, and how each is mostly written."""
        found: dict[str, str] = {}
        for cell, _ in Counter(self.target).most_common():
            found.setdefault(category(cell), cell)
        self._refuse_untrained({category(cell) for cell in self.target[: self.ours]}, found)
        return found

    def _refuse_untrained(self, trained: Collection[str], spelled: Mapping[str, str]) -> None:
        """Raise UsageError where the test file has a class that no row to learn from has."""
        new = [cell for label, cell in spelled.items() if label not in trained]
        if new:
            known = ", ".join(sorted({spelled[label] for label in trained}, key=_natural)[:5])
            numbers = all(map(is_number, spelled))
            hint = "; to predict numbers, say -o task.goal=regression" if numbers else ""
            raise self._unusable(
                f"is {new[0]!r} in the test file alone; the other file has: {known}: "
                f"write them alike, or leave such rows out{hint}"
            )

    @cached_property
    def target_name(self) -> str:
        name = self.reading.target or list(self.raw)[-1]
        if name not in self.raw:
            raise UnknownNameError(f"target column of task {self.name}", name, self.raw)
        return name

    @cached_property
    def tables(self) -> list[Table]:
        """The table to learn from, and that of the test file, which has all its columns."""
        if self.extra is None:
            return [self.raw]
        for name in self.raw:
            if name not in self.extra:
                raise UsageError(f"task {self.name}: the test file has no column {name!r}")
        return [self.raw, self.extra]

    @cached_property
    def table(self) -> dict[str, list[str | None]]:
        """All rows whose target is known; those to test on come last."""
        whole = {
            name: self._cleaned([cell for each in self.tables for cell in each[name]])
            for name in self.raw
        }
        known = [cell is not None for cell in whole[self.target_name]]
        if not all(known):
            self._tell_left_out([cell for each in self.tables for cell in each[self.target_name]])
        kept = {name: list(compress(cells, known)) for name, cells in whole.items()}
        return {**kept, self.target_name: self._pointed(self.target_name, kept[self.target_name])}

    def _pointed(self, name: str, cells: Cells) -> list[str | None]:
        """Numbers with a point, as all else here has them, where the file has commas.

        Only where all are numbers: words, and categories, stay as they are.
        """
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

    def _tell_left_out(self, targets: Cells) -> None:
        """Say how many rows have no target, and which words say so."""
        kept = zip(targets, self._cleaned(targets), strict=True)
        gone = [(raw or "").strip() for raw, cell in kept if cell is None]
        words = sorted(set(gone) - {""})
        said = f", those that say {' or '.join(map(repr, words))} among them" if words else ""
        hint = "; if that is a class, -o task.missing=… says what is missing" if words else ""
        self._warn(f"{len(gone)} rows without a target are left out{said}{hint}")

    @cached_property
    def tested(self) -> int:
        """How many of the last rows are the test file's."""
        cells = [cell for each in self.tables[1:] for cell in each[self.target_name]]
        return sum(cell is not None for cell in self._cleaned(cells))

    @property
    def ours(self) -> int:
        """How many of the first rows are there to learn from."""
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
            raise self._unusable(f"holds {found}: nothing to learn")
        if goal is not Goal.CLASSIFICATION and odd:
            self._refuse_commas(distinct)
        if goal is Goal.REGRESSION and odd:
            raise self._unusable(f"holds {odd[0]!r}, which is not a number to predict")
        few = not odd and len(known) <= _FEW and all(float(c).is_integer() for c in own)
        classes = goal is Goal.CLASSIFICATION or (goal is Goal.AUTO and (bool(odd) or few))
        if classes and len(known) > len(own) / 2:
            said = f"has {len(known)} classes in {len(own)} rows"
            raise self._unusable(f"{said}: name another by -o task.target")
        return classes

    def _refuse_infinite(self, name: str, distinct: Collection[str]) -> None:
        """Raise UsageError where numbers are mixed with infinite ones, which nobody means."""
        infinite = [cell for cell in distinct if is_infinite(cell)]
        if infinite and all(is_number(cell) for cell in distinct if not is_infinite(cell)):
            raise UsageError(
                f"task {self.name}: column {name!r} holds {infinite[0]!r}: leave such cells empty"
            )

    def _refuse_commas(self, distinct: Collection[str]) -> None:
        """Raise UsageError where a target of words is one of numbers with decimal commas."""
        if pointed := _with_comma(distinct):
            raise self._unusable(
                f"holds {pointed!r}: say '-o task.decimal=,' if its commas are decimal, and "
                "'-o task.goal=classification' if not"
            )

    def _unusable(self, why: str) -> UsageError:
        return UsageError(f"task {self.name}: target {self.target_name!r} {why}")

    # The rows.
    def _check_rows(self) -> None:
        """Raise UsageError where there are too few, in either file."""
        if self.extra is not None and not self.tested:
            raise UsageError(
                f"task {self.name}: no row of the test file has a target {self.target_name!r}: "
                "leave the file out, and predict it once a model is exported"
            )
        if self.ours < _LEAST:
            raise UsageError(
                f"task {self.name}: {counted(self.ours, 'row')} with a target: too few to train, "
                f"choose and test by, which needs {_LEAST} or more"
            )

    def _splits(self, classes: Any) -> "dict[Split, Tensor]":
        import torch

        rows, ours, reading = len(self.target), self.ours, self.reading
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
    def _prepared(
        self, splits: "Mapping[Split, Tensor]", **of_target: Any
    ) -> "tuple[Preparation, Tensor]":
        """How the columns become inputs, and these inputs."""
        from automl.portable.columns import Columns, Preparation

        found = list(self._columns(splits[Split.TRAIN].tolist()))
        if not found:
            raise UsageError(f"task {self.name}: no column is left to learn from")
        kept = tuple(column for column, _ in found)
        columns = Columns(kept, self.reading.missing, self.reading.decimal)
        inputs = columns.inputs({column.name: cells for column, cells in found})
        return Preparation(columns, self.target_name, **of_target), inputs

    def _columns(self, rows: Sequence[int]) -> "Iterator[tuple[Numbers | Categories, Cells]]":
        """The columns that say anything, learned from training rows, and their cells."""

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
        """How one column is read, learned from training rows; None where it says nothing.

        Its kind follows from the rows to learn from: what one of the test file cannot be read as
        that kind is refused.
        """
        from automl.portable.columns import Categories, Numbers

        reading = self.reading
        cells = [whole[row] for row in rows]
        distinct = {cell for cell in whole[: self.ours] if cell is not None}
        numbers = name not in reading.categorical and self._is_numeric(name, distinct)
        if numbers:
            self._check_numbers(name, whole)
        if len({cell if cell is None else category(cell) for cell in set(cells)}) < 2:
            self._warn(f"column {name!r} is left out: it says the same in every row")
            return None
        if numbers:
            return Numbers.fit(name, cells, reading.quantiles)
        if name not in reading.categorical:
            if pointed := _with_comma(distinct):
                hint = "are its commas decimal? (-o task.decimal=,)"
                self._warn(f"column {name!r} holds {pointed!r}: {hint}")
            if len(distinct) > max(_FEW, self.ours / 2):
                self._warn(f"column {name!r} is left out: nearly every row has another text")
                return None
        return Categories.fit(name, cells, reading.categories)

    def _is_numeric(self, name: str, distinct: Collection[str]) -> bool:
        """Whether a column holds numbers alone.

        Raises:
            UsageError: it holds infinite ones, or has to be numeric and is not.
        """
        self._refuse_infinite(name, distinct)
        odd = sorted(cell for cell in distinct if not is_number(cell))
        if odd and name in self.reading.numeric:
            raise UsageError(
                f"task {self.name}: column {name!r} holds {odd[0]!r}, which is not a number"
            )
        return not odd

    def _check_numbers(self, name: str, whole: Cells) -> None:
        """Raise UsageError where the test file has no number in a column of numbers."""
        odd = [cell for cell in whole[self.ours :] if cell is not None and not is_number(cell)]
        kind = "goal=classification" if name == self.target_name else f"categorical={name}"
        if odd:
            raise UsageError(
                f"task {self.name}: column {name!r} of the test file holds {odd[0]!r}, and the "
                f"other file numbers alone: mend the cell, or say -o task.{kind}"
            )

    def _warn(self, what: str) -> None:
        _log.warning("task %s: %s", self.name, what)


def _with_comma(distinct: Collection[str]) -> str | None:
    """One of the cells where all are numbers but for decimal commas; else None."""
    commas = [cell for cell in distinct if has_decimal_comma(cell)]
    alike = len(commas) + sum(map(is_number, distinct)) == len(distinct)
    return min(commas) if commas and alike else None


def _natural(label: str) -> tuple[bool, float, str]:
    """Numbers by their size, before words."""
    number = is_number(label)
    return not number, float(label) if number else 0.0, label
