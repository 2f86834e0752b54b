"""The fingerprint identifies what a candidate computes under one task, trainer and budget.

Three levels are tried, cheapest first: L0 compares decisions, L1 canonical graphs, and L2 what a
candidate computes on a few examples. Every key includes the side keys: everything else that a
result depends on.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

VERSION = 3
"""Part of every fingerprint; increased whenever the content of fingerprints changes."""


class Level(Enum):
    """How a candidate is recognised: by its decisions (L0), its graph (L1) or its function (L2)."""

    L0 = "L0"
    L1 = "L1"
    L2 = "L2"


class Verdict(Enum):
    """The outcome of a probe. Only sound functions are shared at L2."""

    SOUND = "sound"
    DEGENERATE = "degenerate"
    UNHASHABLE = "unhashable"
    NONDETERMINISTIC = "non-deterministic"
    HIDDEN = "hidden"
    """The function depends on something a probe cannot show, such as a cast to half precision."""
    SYMMETRIC = "too symmetric"
    """The candidate has more equal layers than the probe can tell apart."""


@dataclass(frozen=True)
class Identity:
    """Everything known about what a candidate computes. All keys include the side keys.

    Attributes:
        l0: The key of the decisions.
        l1: The key of the canonical graph; None without a graph or a canonical labelling.
        colour: A digest of what plain colour refinement sees of the canonical graph.
        l2: One digest per grid of the sketch; empty if the candidate was not probed or the probe
            found nothing to share.
        sketch: The sketch behind the L2 digests, as bytes.
        live_parameters: The number of parameter elements that a gradient reached in the probe.
        verdict: The value of the probe's `Verdict`.
        reason: Why the verdict is not `SOUND`.
        seconds: The time spent on each level.
        skipped: Why the candidate was not probed.
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
    """Encode a value so that equal values have equal texts.

    Keys are sorted and there are no spaces. 1, 1.0 and true differ; 0.0 and -0.0 do not.

    Raises:
        ValueError: The value contains something that JSON cannot represent. The message says
            where.
    """
    try:
        plain = _plain(value)
    except _NotPlainError as error:
        where = "".join(reversed(error.path)).lstrip(".") or "the value"
        raise ValueError(
            f"{where} is {error.value!r} of type {type(error.value).__name__}: expected text, a "
            "finite number, a boolean, None, or lists and mappings (with text keys) of these"
        ) from None
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


class _NotPlainError(Exception):
    """A value that JSON cannot represent; `path` leads to it, last step first."""

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
    """Hash a value to 64 hexadecimal digits.

    Raises:
        ValueError: The value has no `canonical_json`.
    """
    return hashlib.blake2b(canonical_json(content).encode(), digest_size=32).hexdigest()
