"""Layers that can hold an open decision, for use where a plain `torch.nn` layer could not."""

from automl.space.layers import Choice, Dropout, OpenLayer, centre, open_in, open_layers

__all__ = ["Choice", "Dropout", "OpenLayer", "centre", "open_in", "open_layers"]
