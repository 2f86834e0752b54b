"""The fingerprint: what a candidate computes, under one task, trainer and budget.

Levels are tried in order, cheapest first: L0 by decisions, L1 by canonical graphs, L2 by what a
candidate computes on a few examples. Each key holds the side keys: all else a result depends on.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

VERSION = 3
"""Part of every fingerprint: raised when what goes into one changes."""


class Level(Enum):
    """How a candidate is recognised: by its decisions, its canonical graph, or its function."""

    L0 = "L0"
    L1 = "L1"
    L2 = "L2"


class Verdict(Enum):
    """What a probe says of a candidate's function; only a sound one is ever shared."""

    SOUND = "sound"
    DEGENERATE = "degenerate"
    UNHASHABLE = "unhashable"
    NONDETERMINISTIC = "non-deterministic"
    HIDDEN = "hidden"
    """It depends on what a probe cannot show, such as a cast to half precision."""
    SYMMETRIC = "too symmetric"
    """It has more equal layers than can be set apart."""


@dataclass(frozen=True)
class Identity:
    """All that is known of what a candidate computes; every key holds the side keys, too.

    colour: what plain colour refinement sees of the canonical graph. l2: one digest for each
    grid, none where it was not probed or gave nothing to share. sketch: what the digests were
    made of. verdict: a Verdict's value; reason: why it is not a sound one. seconds: the time
    spent, by level. skipped: why it was not probed.
    """

    l0: str
    l1: str | None = None
    colour: str | None = None
    l2: tuple[str, ...] = ()
    sketch: bytes | None = None
    live_parameters: int | None = None
    verdict: str | None = None
    reason: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: str | None = None


def canonical_json(value: Any) -> str:
    """One text for equal values: sorted keys, no spaces; 1, 1.0 and true stay apart, 0.0 is -0.0.

    Raises:
        ValueError: the value holds something JSON cannot; the text says where.
    """
    try:
        plain = _plain(value)
    except _NotPlainError as error:
        where = "".join(reversed(error.path)).lstrip(".") or "the value"
        raise ValueError(
            f"{where} is {error.value!r} of type {type(error.value).__name__}: an identity is "
            "made of text, finite numbers, true, false, none, and lists and mappings of these by "
            "text"
        ) from None
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


class _NotPlainError(Exception):
    """A value that JSON has not; `path` leads to it, last step first."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.path: list[str] = []


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _step(f".{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_step(f"[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, float) and math.isfinite(value):
        return float(value) + 0.0
    if value is None or isinstance(value, str | int):
        return value
    raise _NotPlainError(value)


def _step(name: str, item: Any) -> Any:
    if type(item) in (str, int, bool):
        return item
    try:
        return _plain(item)
    except _NotPlainError as error:
        error.path.append(name)
        raise


def digest_of(content: Any) -> str:
    """64 hexadecimal digits that stand for a value; raises ValueError as `canonical_json`."""
    return hashlib.blake2b(canonical_json(content).encode(), digest_size=32).hexdigest()
