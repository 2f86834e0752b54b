"""Optional skip connections, shared by several spaces.

Source: K. He et al.: Deep Residual Learning for Image Recognition, arXiv 1512.03385.
"""

from collections.abc import Callable

import optuna

from automl import Graph, Open
from automl_searchspaces._training import Extent

_NONE = "zero"
_SKIPS = [_NONE, "identity"]


def skipping(trial: optuna.trial.BaseTrial, extent: Extent) -> str | Open:
    """Decide whether a layer's input is added to its output; only in the full extent."""
    skip: str | Open = _NONE
    if extent is Extent.FULL:
        skip = trial.suggest_categorical("skip", _SKIPS)
    return skip


def add_skip(
    graph: Graph, skip: str | Open, source: str, h: str, fitted: Callable[[str], str]
) -> str:
    """Add a source to node h, or the open choice whether to do so.

    Args:
        graph: The graph.
        skip: The result of `skipping`.
        source: The node to add.
        h: The node to add it to.
        fitted: Changes the width of the source to that of h.
    """
    if not isinstance(skip, Open) and skip == _NONE:
        return h
    if not graph.node(source).has_shape_of(graph.node(h)):
        source = fitted(source)
    return graph.add("add", h, graph.add(skip, source))
