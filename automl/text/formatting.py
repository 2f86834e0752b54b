"""How numbers, values and times read, on a screen and on a page."""

from collections.abc import Mapping
from typing import Any

_EXACT = 2**53
"""Below it a whole number in floating point is exactly that."""


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    whole = value.is_integer() and abs(value) < _EXACT
    return f"{value:.0f}" if whole else f"{value:.4g}"


def pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in (values or {}).items())


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def counted(amount: int, noun: str) -> str:
    """`1 trial`, `2 trials`, `10,000 trials`."""
    return f"{amount:,} {noun}{'s' * (amount != 1)}"
