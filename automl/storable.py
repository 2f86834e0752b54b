"""Limits that every database can store, checked where values enter so that all storages agree.

Servers differ in what they refuse, and SQLite and journal files accept nearly anything. These are
the narrowest limits: Optuna's columns of 512 characters and MySQL's texts of 64 KB.
"""

import json
from collections.abc import Mapping
from typing import Any

from automl.errors import UnstorableError

LONGEST_NAME = 512
"""The most characters in the name of a decision, a metric, an attribute or a study."""
LONGEST_VALUE = 65_535
"""The most bytes of an attribute or of a decision's choices, as JSON."""
LONGEST_TEXT = 1_000_000
"""The most characters of a message or a traceback: servers limit the size of a statement."""
_INTEGERS = range(-(2**63), 2**63)
_SHOWN = 40


def name_fault(name: object) -> str | None:
    """Why some database cannot store this name; None if all can."""
    if not isinstance(name, str):
        return f"expected text, got {short(name)}"
    if len(name) > LONGEST_NAME:
        return f"it has {len(name)} characters, and databases store at most {LONGEST_NAME}"
    return _text_fault(name)


def value_fault(value: object) -> str | None:
    """Why some database cannot store this plain value; None if all can."""
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, int) and value not in _INTEGERS:
        return "it needs more than the 64 bits that databases store"
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next((fault for each in value if (fault := value_fault(each))), None)
    return None


def size_fault(value: Any, limit: int = LONGEST_VALUE) -> str | None:
    """Why some database cannot store this value as JSON; None if all can.

    Args:
        value: The value.
        limit: The most bytes of its JSON.

    Raises:
        TypeError: The value cannot be written as JSON.
    """
    size = len(json.dumps(value))
    if size <= limit:
        return None
    return f"it takes {size:,} bytes, and databases store at most {limit:,}"


def short(value: object) -> str:
    """The `repr` of a value for a message, with the middle of a long one left out."""
    shown = repr(value)
    return shown if len(shown) <= 2 * _SHOWN else f"{shown[:_SHOWN]}…{shown[-_SHOWN:]}"


def plain_text(text: str) -> str:
    """Text that every database accepts: lone surrogates and NUL escaped, long text shortened."""
    plain = text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
    if len(plain) <= LONGEST_TEXT:
        return plain
    half = LONGEST_TEXT // 2
    return f"{plain[:half]} … {plain[-half:]}"


def _text_fault(text: str) -> str | None:
    if "\x00" in text:
        return "it has a NUL character, which databases do not store"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "it has half a character (a lone surrogate), which databases do not store"
    return None


def metric_name(name: object) -> str:
    """The name of a metric as text.

    Raises:
        UnstorableError: Some database cannot store it.
    """
    if (fault := name_fault(str(name))) is not None:
        raise UnstorableError(f"metric {short(name)} cannot be stored: {fault}")
    return str(name)
