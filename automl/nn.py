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

__all__ = ["Choice", "Dropout", "OpenLayer", "assigned", "centre", "open_in", "open_layers"]
