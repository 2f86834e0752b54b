"""What every database can hold: checked where values enter, so that all storages are alike.

Servers differ in what they refuse, and SQLite and journals take nearly anything. These bounds are
the narrowest of all: Optuna's columns of 512 characters and MySQL's texts of 64 KB.
"""

import json
from collections.abc import Mapping
from typing import Any

from automl.errors import UnstorableError

LONGEST_NAME = 512
"""Characters of the name of a decision, a metric, an attribute or a study."""
LONGEST_VALUE = 65_535
"""Bytes of an attribute, or of a decision's choices, in JSON."""
LONGEST_TEXT = 1_000_000
"""Characters of a message or a traceback: servers limit what comes in one piece."""
_INTEGERS = range(-(2**63), 2**63)
_SHOWN = 40


def name_fault(name: object) -> str | None:
    """Why some database could not hold this name; None where each can."""
    if not isinstance(name, str):
        return f"expected text, got {short(name)}"
    if len(name) > LONGEST_NAME:
        return f"it has {len(name)} characters, of which databases hold {LONGEST_NAME}"
    return _text_fault(name)


def value_fault(value: object) -> str | None:
    """Why some database could not hold this plain value; None where each can."""
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, int) and value not in _INTEGERS:
        return "it has more than the 64 bits that databases hold"
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next((fault for each in value if (fault := value_fault(each))), None)
    return None


def size_fault(value: Any, limit: int = LONGEST_VALUE) -> str | None:
    """Why some database could not hold this value's JSON; None where each can.

    Raises:
        TypeError: it has no JSON.
    """
    size = len(json.dumps(value))
    return f"it takes {size:,} bytes, of which databases hold {limit:,}" if size > limit else None


def short(value: object) -> str:
    """A value in a message, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= 2 * _SHOWN else f"{shown[:_SHOWN]}…{shown[-_SHOWN:]}"


def plain_text(text: str) -> str:
    """Text as every database takes it: without lone surrogates or NUL, and not endless."""
    plain = text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
    if len(plain) <= LONGEST_TEXT:
        return plain
    half = LONGEST_TEXT // 2
    return f"{plain[:half]} … {plain[-half:]}"


def _text_fault(text: str) -> str | None:
    if "\x00" in text:
        return "it has a NUL character, which databases do not hold"
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "it has half a character (a lone surrogate), which databases do not hold"
    return None


def metric_name(name: object) -> str:
    """The name of a metric as text.

    Raises:
        UnstorableError: some database cannot hold it.
    """
    if (fault := name_fault(str(name))) is not None:
        raise UnstorableError(f"metric {short(name)} cannot be stored: {fault}")
    return str(name)
