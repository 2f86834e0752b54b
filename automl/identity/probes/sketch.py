"""Digests of what a function computes that ignore rounding noise but nothing else.

Noise makes plain rounding unreliable: a value next to the edge of a cell may fall on either side.
So each vector is rounded on several grids with different edges. Functions that share a digest on
any grid may be equal, and `Sketch.agrees` confirms it on the values themselves.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from automl.errors import AutoMLError

GRIDS = 3
"""The number of digests of a sketch, one per grid."""

_BITS = 24
# The least scale of a vector. Values that are zero in theory, such as a sum of terms near one that
# cancel, come out as about 1e-16, which must stay far below a cell (6e-14 at this scale).
_FLOOR = 2.0**-20
# A common digest bounds the distance of two vectors by a cell, 2^-23 of their scale. The tolerance
# is an eighth of that, so that confirmation is stricter than comparing digests. Equal functions
# never differed by more than 1e-11 in float64.
_TOLERANCE = 2.0**-26

_MAGIC = b"automl sketch\x01"
_CHECKSUM = 16
_MAX_BYTES = 2**25
_MAX_VECTORS = 2**14

Vector = NDArray[np.float64]


class SketchError(AutoMLError):
    """A stored sketch is damaged, or a sketch cannot hold some values."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """What a function computed in its probe.

    Attributes:
        vectors: Vectors of float64; each is compared relative to its own largest value.

    Raises:
        SketchError: A vector has more than one dimension or contains NaN or infinity.
    """

    vectors: tuple[Vector, ...]

    def __post_init__(self) -> None:
        vectors = tuple(np.array(vector, dtype=np.float64) for vector in self.vectors)
        for vector in vectors:
            if vector.ndim != 1 or not np.isfinite(vector).all():
                raise SketchError("cannot sketch this vector: expected one axis of finite numbers")
            vector.flags.writeable = False
        object.__setattr__(self, "vectors", vectors)

    def digests(self, context: str) -> tuple[str, ...]:
        """Hash the vectors on each grid.

        Args:
            context: Text that is hashed in exactly, so that other contexts give other digests.

        Returns:
            One hexadecimal digest per grid.
        """
        return tuple(self._digest(context, grid) for grid in range(GRIDS))

    def agrees(self, other: "Sketch") -> bool:
        """Whether all values agree up to rounding noise, relative to the scale of each vector."""
        if [len(v) for v in self.vectors] != [len(v) for v in other.vectors]:
            return False
        pairs = zip(self.vectors, other.vectors, self._scales, other._scales, strict=True)
        with np.errstate(over="ignore"):
            return all(_near(ours, theirs, max(a, b)) for ours, theirs, a, b in pairs)

    def to_bytes(self) -> bytes:
        """Encode the exact values, compressed and with a checksum.

        Raises:
            SketchError: There are more values than `from_bytes` accepts.
        """
        lengths = [len(vector) for vector in self.vectors]
        if len(lengths) > _MAX_VECTORS or 8 * sum(lengths) > _MAX_BYTES:
            raise SketchError(f"a sketch of {sum(lengths)} values is too large to be stored")
        values = np.concatenate([*self.vectors, np.empty(0)]).astype("<f8")
        # Bytes of one significance together compress better: exponents are similar, digits random.
        planes = values.view(np.uint8).reshape(-1, 8).T.tobytes()
        header = struct.pack(f"<I{len(lengths)}I", len(lengths), *lengths)
        packed = struct.pack("<I", len(header) + len(planes)) + zlib.compress(header + planes, 6)
        return _MAGIC + _checksum(packed) + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> "Sketch":
        """Decode what `to_bytes` wrote, with bounded memory even for malicious data.

        Raises:
            SketchError: The data is damaged, cut off, or in another format.
        """
        raw = _unpacked(bytes(data))
        if len(raw) < 4:
            raise SketchError("a sketch is damaged: it has no header")
        (count,) = struct.unpack_from("<I", raw)
        if count > _MAX_VECTORS or len(raw) < 4 + 4 * count:
            raise SketchError("a sketch is damaged: its header is cut off")
        lengths = struct.unpack_from(f"<{count}I", raw, 4)
        planes = np.frombuffer(raw, np.uint8, offset=4 + 4 * count)
        if len(planes) != 8 * sum(lengths):
            raise SketchError("a sketch is damaged: its length does not match its header")
        values = np.frombuffer(planes.reshape(8, -1).T.tobytes(), "<f8")
        return cls(tuple(_parts(values, lengths)))

    @cached_property
    def _scales(self) -> tuple[float, ...]:
        return tuple(max(float(np.abs(v).max(initial=0.0)), _FLOOR) for v in self.vectors)

    def _digest(self, context: str, grid: int) -> str:
        hashed = hashlib.blake2b(digest_size=32)
        head = context.encode()
        hashed.update(struct.pack("<3sBBqq", b"L2\x01", _BITS, grid, len(head), len(self.vectors)))
        hashed.update(head)
        for vector, scale in zip(self.vectors, self._scales, strict=True):
            exponent = _exponent(scale, grid)
            # No offset is 0 or twice another. Cells of two grids are equal or differ by a factor
            # of two, so no edge of one grid is an edge of another, and multiples of a cell,
            # including zero, are never on an edge.
            offset = (2 * grid + 1) / (2 * GRIDS)
            cells = np.floor(np.ldexp(vector, _BITS - exponent) + offset)
            hashed.update(struct.pack("<qq", len(vector), exponent))
            hashed.update(cells.astype("<i4").tobytes())
        return hashed.hexdigest()


def _exponent(scale: float, grid: int) -> int:
    """The power of two above a scale; each grid moves to the next power at a different scale."""
    fraction, exponent = math.frexp(scale)
    return exponent + (fraction * 2 ** (grid / GRIDS) >= 1)


def _near(ours: Vector, theirs: Vector, scale: float) -> bool:
    return bool((np.abs(ours - theirs) <= _TOLERANCE * scale).all())


def _parts(values: Vector, lengths: tuple[int, ...]) -> Iterator[Vector]:
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length


def _checksum(packed: bytes) -> bytes:
    return hashlib.blake2b(packed, digest_size=_CHECKSUM).digest()


def _unpacked(data: bytes) -> bytes:
    """Decompress the bytes of a sketch after all checks that do not need the content."""
    start = len(_MAGIC) + _CHECKSUM
    packed = data[start:]
    if not data.startswith(_MAGIC) or len(packed) < 4:
        raise SketchError("a sketch is damaged, or of another format")
    if data[len(_MAGIC) : start] != _checksum(packed):
        raise SketchError("a sketch is damaged: its checksum differs")
    (size,) = struct.unpack_from("<I", packed)
    if size > _MAX_BYTES + 4 * (_MAX_VECTORS + 1):
        raise SketchError(f"a sketch is damaged: it claims to contain {size} bytes")
    # A checksum stops accidents, not attacks: never unpack more than announced.
    unpacking = zlib.decompressobj()
    try:
        raw = unpacking.decompress(packed[4:], size + 1)
    except zlib.error as error:
        raise SketchError(f"a sketch is damaged: {error}") from error
    if len(raw) != size or not unpacking.eof or unpacking.unused_data:
        raise SketchError("a sketch is damaged: its content is not as long as announced")
    return raw
