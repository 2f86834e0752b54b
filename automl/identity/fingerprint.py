"""The fingerprint: what a candidate computes, under one task, trainer and budget.

Levels are tried in order, cheapest first. L0 is here: equal decisions under equal side keys.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

VERSION = 1
"""Part of every fingerprint: raised when what goes into one changes."""


class Level(Enum):
    """How a candidate was recognised."""

    L0 = "L0"


@dataclass(frozen=True)
class Fingerprint:
    """A digest, and the level at which it was found."""

    digest: str
    level: Level


def fingerprint(
    decisions: Mapping[str, Any], open_decisions: Mapping[str, Any], side_keys: Mapping[str, Any]
) -> Fingerprint:
    """The identity of closed decisions under exact side keys.

    open_decisions: those left open, by name; that they are open is part of what is computed.
    side_keys: all else that a result depends on, as JSON values.
    """
    content = {
        "version": VERSION,
        "decisions": dict(decisions),
        "open": sorted(open_decisions),
        "side_keys": dict(side_keys),
    }
    return Fingerprint(_digest(content), Level.L0)


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces; 1, 1.0 and true stay apart, 0.0 is -0.0.

    Raises:
        ValueError: the value holds something JSON cannot; the text says where.
    """
    plain = _plain(value, "")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and math.isfinite(value):
        return float(value) + 0.0
    if value is None or isinstance(value, str | int):
        return value
    raise ValueError(
        f"{where.lstrip('.') or 'the value'} is {value!r} of type {type(value).__name__}: an "
        "identity is made of text, finite numbers, true, false, none, and lists and mappings of "
        "these by text"
    )


def _digest(content: Any) -> str:
    return hashlib.blake2b(canonical_json(content).encode(), digest_size=32).hexdigest()
