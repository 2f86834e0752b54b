"""Layers that can hold an open decision; use them where a plain `torch.nn` layer cannot."""

from automl.space.layers import (
    Choice,
    Dropout,
    OpenLayer,
    assigned,
    centre,
    open_in,
    open_layers,
)
from automl.space.regularization import Blend, Cutout, GaussianNoise

__all__ = [
    "Blend",
    "Choice",
    "Cutout",
    "Dropout",
    "GaussianNoise",
    "OpenLayer",
    "assigned",
    "centre",
    "open_in",
    "open_layers",
]
