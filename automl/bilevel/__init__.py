"""Bilevel problems: variables chosen by the loss of the weights that a training leaves."""
