"""The fingerprint: what a candidate computes, under one task, trainer and budget.

Levels are tried in order, cheapest first. L0 is here: equal decisions under equal side keys.
"""

import hashlib
import json
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
    """One text for equal values: sorted keys, no spaces; 1, 1.0 and true stay apart.

    Raises:
        ValueError: the value holds something JSON cannot.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _digest(content: Any) -> str:
    return hashlib.blake2b(canonical_json(content).encode(), digest_size=32).hexdigest()
