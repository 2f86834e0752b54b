"""Sketches: insensitive to rounding noise, sensitive to everything else, and safe to read."""

import hashlib
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from automl.identity.probes.sketch import GRIDS, Sketch, SketchError

FINITE = st.floats(-1e6, 1e6)
VECTORS = st.lists(
    hnp.arrays(np.float64, st.integers(0, 40), elements=FINITE), min_size=1, max_size=4
)
NOISE = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def perturbed(vectors, relative, rng):
    """Vectors with noise relative to the largest value of each."""
    return [v + relative * np.abs(v).max(initial=0) * rng.uniform(-1, 1, v.shape) for v in vectors]


def match(one, other):
    return set(one.digests("")) & set(other.digests(""))


@given(VECTORS, NOISE)
def test_noisy_values_share_a_digest_and_agree(vectors, rng):
    one, other = Sketch(tuple(vectors)), Sketch(tuple(perturbed(vectors, 1e-13, rng)))
    assert match(one, other)
    assert one.agrees(other)
    assert other.agrees(one)


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=FINITE), st.integers(0, 39))
def test_a_difference_of_a_thousandth_never_agrees(vector, index):
    vector = np.append(vector, 1.0)
    changed = vector.copy()
    changed[index % len(vector)] += 1e-3 * np.abs(vector).max()
    one, other = Sketch((vector,)), Sketch((changed,))
    assert not match(one, other)
    assert not one.agrees(other)


def test_many_noisy_values_share_a_digest_despite_grid_edges():
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        vectors = (rng.normal(size=1000), rng.normal(size=3))
        noisy = tuple(perturbed(vectors, 1e-11, rng))
        missed += not match(Sketch(vectors), Sketch(noisy))
    # A single grid would miss one in three at this noise, which is 100 times the largest observed.
    assert missed <= 20


@pytest.mark.parametrize("value", [1.0, 0.5, 2.0**-24, 3.0, 2 ** (1 / 3), 2 ** (2 / 3), 0.0])
def test_round_numbers_are_on_the_edge_of_at_most_one_grid(value):
    for sign in (1, -1):
        one = Sketch((np.array([value, 0.0]),))
        other = Sketch((np.array([value, 0.0]) + sign * 1e-15,))
        assert len(match(one, other)) >= GRIDS - 1


def test_rounding_noise_around_zero_is_zero():
    zero = Sketch((np.zeros(5),))
    assert zero.digests("") == Sketch((np.full(5, -3e-16),)).digests("")
    assert zero.agrees(Sketch((np.full(5, 1e-15),)))


def test_shape_order_and_context_count():
    sketches = [
        Sketch((np.zeros(2), np.zeros(1))),
        Sketch((np.zeros(1), np.zeros(2))),
        Sketch((np.zeros(3),)),
        Sketch((np.zeros(3), np.zeros(0))),
        Sketch(()),
    ]
    seen = [digest for sketch in sketches for digest in sketch.digests("")]
    seen += sketches[0].digests("a")
    assert len(set(seen)) == len(seen) == GRIDS * 6
    assert not any(a.agrees(b) for a in sketches for b in sketches if a is not b)


def test_values_of_any_magnitude_have_digests():
    for size in (1e-308, 1e-30, 1e30, 1.7e308):
        sketch = Sketch((np.array([size, -size, size / 3]),))
        assert len(set(sketch.digests(""))) == GRIDS
        assert sketch.agrees(sketch)
    assert not Sketch((np.array([1.7e308]),)).agrees(Sketch((np.array([-1.7e308]),)))


@pytest.mark.parametrize("vector", [[np.nan], [np.inf], [[1.0]], 1.0])
def test_only_vectors_of_finite_numbers_are_accepted(vector):
    with pytest.raises(SketchError, match="finite"):
        Sketch((np.array(vector),))


def test_a_sketch_cannot_be_changed():
    given_vector = np.ones(2)
    sketch = Sketch((given_vector,))
    given_vector[0] = 5
    assert sketch.vectors[0][0] == 1
    with pytest.raises(ValueError, match="read-only"):
        sketch.vectors[0][0] = 2


@given(VECTORS)
def test_to_bytes_keeps_every_bit(vectors):
    sketch = Sketch(tuple(vectors))
    again = Sketch.from_bytes(sketch.to_bytes())
    assert [v.tobytes() for v in again.vectors] == [v.tobytes() for v in sketch.vectors]
    assert again.digests("x") == sketch.digests("x")


def stored():
    return Sketch((np.linspace(-1, 1, 50), np.arange(3.0))).to_bytes()


def test_every_flipped_byte_is_detected():
    data = stored()
    for index in range(len(data)):
        broken = bytearray(data)
        broken[index] ^= 1 << index % 8
        with pytest.raises(SketchError):
            Sketch.from_bytes(bytes(broken))


def test_every_truncation_is_detected():
    data = stored()
    for length in range(len(data)):
        with pytest.raises(SketchError):
            Sketch.from_bytes(data[:length])
    with pytest.raises(SketchError):
        Sketch.from_bytes(data + b"\0")


def forged(raw, size=None, level=9):
    """Arbitrary content with a valid checksum, as an attacker would write it."""
    head = len(Sketch(()).to_bytes()) - len(zlib.compress(struct.pack("<I", 0), 6)) - 4 - 16
    packed = struct.pack("<I", len(raw) if size is None else size) + zlib.compress(raw, level)
    checksum = hashlib.blake2b(packed, digest_size=16).digest()
    return stored()[:head] + checksum + packed


def test_a_forged_sketch_is_detected():
    nan = struct.pack("<II", 1, 1) + bytes([0, 0, 0, 0, 0, 0, 0xF8, 0x7F])
    assert Sketch.from_bytes(forged(struct.pack("<II", 1, 1) + bytes(8))).vectors[0] == [0.0]
    for raw, size in [
        (nan, None),
        (bytes(2**27), None),
        (bytes(2**27), 100),
        (struct.pack("<I", 0), 100),
        (struct.pack("<I", 2**31), None),
        (struct.pack("<II", 1, 2**31), None),
        (struct.pack("<I", 1), None),
        (b"", None),
        (struct.pack("<II", 1, 1) + bytes(9), None),
    ]:
        with pytest.raises(SketchError):
            Sketch.from_bytes(forged(raw, size))


def test_a_sketch_too_large_to_read_is_not_written():
    with pytest.raises(SketchError, match="too large"):
        Sketch((np.zeros(2**23),)).to_bytes()


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(SketchError):
        Sketch.from_bytes(data)
