"""Interprets cells of text: missing values, numbers and categories."""

import math
import re
from collections.abc import Collection, Sequence

Cells = Sequence[str | None]
"""Stripped text; None for a missing value."""
MISSING = ("?", "na", "n/a", "nan", "null", "none", "#n/a")
"""Words that mean a missing value, in any case."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0+")


def cleaned(cells: Cells, missing: Collection[str] = MISSING) -> list[str | None]:
    """Strip cells, and replace empty cells and words for missing values by None."""
    words = {"", *(word.lower() for word in missing)}
    # Cells repeat, so each distinct one is cleaned once.
    known = {cell: None if cell is None else cell.strip() for cell in set(cells)}
    known = {k: None if v is None or v.lower() in words else v for k, v in known.items()}
    return [known[cell] for cell in cells]


def is_number(cell: str) -> bool:
    """Return whether a cell is a finite number in plain digits with a decimal point."""
    return _NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))


def is_infinite(cell: str) -> bool:
    """Return whether a cell is an infinite number, in words or because it is too large."""
    if _INFINITE.fullmatch(cell):
        return True
    return _NUMBER.fullmatch(cell) is not None and math.isinf(float(cell))


def pointed(cells: Cells) -> list[str | None]:
    """Replace decimal commas by points.

    Raises:
        ValueError: A number has a point, which could separate thousands or parts of a date.
    """
    for cell in set(cells):
        if cell is not None and "." in cell and is_number(cell):
            raise ValueError(f"contains {cell!r}, but decimals use a comma: remove the point")
    return [with_point(cell) if cell is not None else None for cell in cells]


def with_point(cell: str) -> str:
    """Replace the decimal comma of a number by a point; other cells are returned unchanged."""
    return cell.replace(",", ".") if has_decimal_comma(cell) else cell


def has_decimal_comma(cell: str) -> bool:
    """Return whether a cell is a number with a decimal comma."""
    return _DECIMAL_COMMA.fullmatch(cell) is not None


def category(cell: str) -> str:
    """Return the name of a category; 3 and 3.0 are the same one."""
    whole = _WHOLE.fullmatch(cell)
    return whole[1] if whole else cell
