"""What a cell of text says: nothing, a number or a category."""

import math
import re
from collections.abc import Collection, Sequence

Cells = Sequence[str | None]
"""Text without blanks around it; None where there is no value."""
MISSING = ("?", "na", "n/a", "nan", "null", "none", "#n/a")
"""Words that say no value, in any case, as an empty cell does."""
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?")
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0+")


def cleaned(cells: Cells, missing: Collection[str] = MISSING) -> list[str | None]:
    """Cells without blanks around them, and None for empty ones and words that say no value."""
    words = {"", *(word.lower() for word in missing)}
    # Cells repeat, and so are looked at once each.
    known = {cell: None if cell is None else cell.strip() for cell in set(cells)}
    known = {k: None if v is None or v.lower() in words else v for k, v in known.items()}
    return [known[cell] for cell in cells]


def is_number(cell: str) -> bool:
    """Whether it is a finite number, in plain digits with a point."""
    return _NUMBER.fullmatch(cell) is not None and math.isfinite(float(cell))


def is_infinite(cell: str) -> bool:
    """Whether it is a number that is too large, or says that it is infinite."""
    if _INFINITE.fullmatch(cell):
        return True
    return _NUMBER.fullmatch(cell) is not None and math.isinf(float(cell))


def pointed(cells: Cells) -> list[str | None]:
    """Cells whose decimal comma is a point.

    Raises:
        ValueError: a number has a point, which would then part its thousands, or a date.
    """
    for cell in set(cells):
        if cell is not None and "." in cell and is_number(cell):
            raise ValueError(f"holds {cell!r}, and decimals have a comma: write it without a point")
    return [with_point(cell) if cell is not None else None for cell in cells]


def with_point(cell: str) -> str:
    """A number with a decimal comma as one with a point; all else as it is."""
    return cell.replace(",", ".") if has_decimal_comma(cell) else cell


def has_decimal_comma(cell: str) -> bool:
    """Whether it is a number but for a comma in the place of its point."""
    return _DECIMAL_COMMA.fullmatch(cell) is not None


def category(cell: str) -> str:
    """What a category is known by: 3 and 3.0, as programs write whole numbers, are the same."""
    whole = _WHOLE.fullmatch(cell)
    return whole[1] if whole else cell
