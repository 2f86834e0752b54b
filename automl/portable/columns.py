"""Turns raw columns of text into a model's inputs, as fitted on training rows, and as JSON.

Source of the quantile transformation: F. Pedregosa et al.: Scikit-learn, JMLR 12, 2011.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .pixels import Pixels

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none", "#n/a"})
"""What stands for no value, in any case and with blanks around it."""
_LEVELS = 257
_TAIL = 1e-3
Cells = Sequence[str]


def is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def is_number(cell: str) -> bool:
    """Whether it is a finite number."""
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def is_infinite(cell: str) -> bool:
    """Whether it is a number that is too large, or says that it is infinite."""
    try:
        return math.isinf(float(cell))
    except ValueError:
        return False


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, mapped to a normal distribution, or to mean 0 and deviation 1.

    filler: in place of missing cells. missing: whether a second input says which are missing.
    quantiles: of the training rows, by rising level; empty where it is only shifted and scaled.
    """

    name: str
    filler: float
    missing: bool
    mean: float
    deviation: float
    quantiles: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        return 2 if self.missing else 1

    def encode(self, cells: Cells) -> Tensor:
        """Inputs [n, width].

        Raises:
            ValueError: a cell is no number; the text names it.
        """
        raw = torch.tensor([self._number(cell) for cell in cells], dtype=torch.float64)
        absent = raw.isnan()
        values = torch.where(absent, self.filler, raw)
        scaled = _normal(values, self.quantiles) if self.quantiles else self._standard(values)
        parts = [scaled, absent.double()] if self.missing else [scaled]
        return torch.stack(parts, 1)

    @classmethod
    def fit(cls, name: str, cells: Cells, quantiles: bool = True) -> "Numbers":
        """Learn from training cells, of which one at least is a number."""
        known = [float(cell) for cell in cells if not is_missing(cell)]
        values = torch.tensor(known, dtype=torch.float64)
        deviation = float(values.std(correction=0))
        return cls(
            name,
            filler=float(values.quantile(0.5)),
            missing=len(known) < len(cells),
            mean=float(values.mean()),
            deviation=deviation or 1.0,
            quantiles=_quantiles(values) if quantiles and deviation else (),
        )

    def _standard(self, values: Tensor) -> Tensor:
        return (values - self.mean) / self.deviation

    def _number(self, cell: str) -> float:
        if is_missing(cell):
            return math.nan
        if not is_number(cell):
            raise ValueError(f"column {self.name!r}: expected a number, got {cell!r}")
        return float(cell)


@dataclass(frozen=True)
class Categories:
    """A column of categories: one input for each that was seen, and one for all others."""

    name: str
    values: tuple[str, ...]

    @classmethod
    def fit(cls, name: str, cells: Cells, most: int) -> "Categories":
        """Learn the `most` frequent categories of training cells; a missing cell is one, too."""
        counts = Counter(map(_category, cells))
        frequent = sorted(counts, key=lambda value: (-counts[value], value))[:most]
        return cls(name, tuple(sorted(frequent)))

    @property
    def width(self) -> int:
        return len(self.values) + 1

    def encode(self, cells: Cells) -> Tensor:
        """Inputs [n, width], a single one in each row."""
        known = {value: number for number, value in enumerate(self.values)}
        numbers = torch.tensor([known.get(_category(cell), len(known)) for cell in cells])
        return torch.nn.functional.one_hot(numbers.long(), self.width).double()


@dataclass(frozen=True)
class Columns:
    """How the columns of a table become inputs, in this order."""

    columns: tuple[Numbers | Categories, ...]

    def encode(self, table: Mapping[str, Cells]) -> Tensor:
        """Inputs [n, width] of a table, by columns.

        Raises:
            ValueError: a column is not there, or a cell cannot be read.
        """
        for column in self.columns:
            if column.name not in table:
                raise ValueError(f"no column {column.name!r}; there are: {', '.join(table)}")
        return torch.cat([c.encode(table[c.name]) for c in self.columns], 1).float()

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Where the inputs of each column of categories begin and end."""
        found, start = [], 0
        for column in self.columns:
            if isinstance(column, Categories):
                found.append((start, start + column.width))
            start += column.width
        return tuple(found)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"kind": type(column).__name__, **asdict(column)} for column in self.columns]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> "Columns":
        kinds: dict[str, Any] = {kind.__name__: kind for kind in (Numbers, Categories)}
        made = []
        for item in data:
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
            made.append(kinds[item["kind"]](**{k: v for k, v in given.items() if k != "kind"}))
        return cls(tuple(made))


@dataclass(frozen=True)
class Preparation:
    """What stands between raw rows and a model: its inputs, and what its outputs mean.

    columns: none where the inputs come from no table. pixels: how images become inputs, where they
    do. labels: the names of the classes; none where the target is a number, which is then the
    output times `scale` plus `shift`.
    """

    columns: Columns = Columns(())
    target: str = "class"
    labels: tuple[str, ...] = ()
    shift: float = 0.0
    scale: float = 1.0
    pixels: Pixels | None = None

    @property
    def reads_tables(self) -> bool:
        return bool(self.columns.columns)

    def answers(self, outputs: Tensor) -> dict[str, list[Any]]:
        """Columns of answers: the target, and the probability of each class."""
        outputs = outputs.double()
        if not self.labels:
            return {self.target: (outputs[:, 0] * self.scale + self.shift).tolist()}
        likely = outputs.softmax(1)
        named = {f"p({label})": likely[:, n].tolist() for n, label in enumerate(self.labels)}
        return {self.target: [self.labels[n] for n in likely.argmax(1).tolist()], **named}

    def to_json(self) -> dict[str, Any]:
        pixels = asdict(self.pixels) if self.pixels else None
        return {**vars(self), "columns": self.columns.to_json(), "pixels": pixels}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preparation":
        made = {"columns": Columns.from_json(data["columns"]), "labels": tuple(data["labels"])}
        pixels = data.get("pixels")
        return cls(**{**data, **made, "pixels": Pixels(**pixels) if pixels else None})


def _category(cell: str) -> str:
    return "" if is_missing(cell) else cell.strip()


def _quantiles(values: Tensor) -> tuple[float, ...]:
    """Values at evenly rising levels, from the least to the largest.

    No value counts for more than one level, however many rows share it: the zeros of a column
    that is mostly zero would leave few levels, and so little room, to tell the others apart.
    """
    # Only where columns are learned: who predicts needs no numpy.
    import numpy as np

    distinct, counts = values.unique(return_counts=True)  # type: ignore[no-untyped-call]
    weights = counts.double().clamp(max=len(values) / _LEVELS)
    middles = (weights.cumsum(0) - weights / 2) / weights.sum()
    levels = np.linspace(0, 1, _LEVELS)
    return tuple(np.interp(levels, middles.numpy(), distinct.numpy()).tolist())


def _normal(values: Tensor, quantiles: Sequence[float]) -> Tensor:
    """Values at their level among the training rows, as a normal distribution has it there.

    A value that many rows share stands at the middle of their levels.
    """
    table = torch.tensor(quantiles, dtype=torch.float64)
    values = values.clamp(table[0], table[-1])
    first = torch.searchsorted(table, values)
    last = torch.searchsorted(table, values, right=True) - 1
    low, high = last.clamp(min=0), first.clamp(max=len(table) - 1)
    gap = table[high] - table[low]
    share = torch.where(gap > 0, (values - table[low]) / gap.where(gap > 0, 1.0), 0.5)
    level = (low + share * (high - low)) / (len(table) - 1)
    normal: Tensor = torch.special.ndtri(level.clamp(_TAIL, 1 - _TAIL))
    return normal
