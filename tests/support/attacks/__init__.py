"""Pairs of candidates that are equal or different functions by construction, grouped by kind."""

from attacks import (
    batches,
    copies,
    draws,
    ensembles,
    ordinary,
    precision,
    state,
    symmetry,
    writings,
)

PARTS = (symmetry, ensembles, copies, precision, batches, draws, state, writings, ordinary)
PAIRS = [pair for part in PARTS for pair in part.PAIRS]
SIDES = {name: build for pair in PAIRS for name, build in pair.sides.items()}
"""The builder of each side of each pair, by its name in the space of attacks."""
