"""Residual perceptrons, which can be trained deeper than plain ones.

Source: Y. Gorishniy et al.: Revisiting Deep Learning Models for Tabular Data, arXiv 2106.11959.
"""

from collections.abc import Callable, Mapping

import optuna

from automl import Candidate, Graph, Task, hookimpl
from automl_searchspaces._regularization import disturb, penalties
from automl_searchspaces._residual import residual
from automl_searchspaces._training import Extent, gradient_descent


def residual_mlp(
    trial: optuna.trial.BaseTrial,
    task: Task,
    *,
    max_blocks: int = 4,
    min_width: int = 32,
    max_width: int = 256,
    max_dropout: float = 0.5,
    min_lr: float = 1e-4,
    max_lr: float = 1e-2,
    regularization: Extent = Extent.BASIC,
) -> Candidate:
    """A residual perceptron on the flattened inputs of any task with vector outputs.

    The width, the activation, the normalization and both dropout rates may be left open.

    Args:
        max_blocks: The largest number of residual blocks.
        min_width: The smallest width of a block.
        max_width: The largest width of a block.
        max_dropout: The largest dropout rate.
        min_lr: The smallest learning rate.
        max_lr: The largest learning rate.
        regularization: With full, also decide on noise, blending and, for images, cutout of the
            inputs, mixup, an L2 penalty and, for classes, on label smoothing.
    """
    graph = Graph()
    h = disturb(graph, graph.input("x", task.signature.input_shape), trial, regularization)
    h = graph.add("flatten", h)
    h = residual(
        graph,
        h,
        trial,
        max_blocks=max_blocks,
        min_width=min_width,
        max_width=max_width,
        max_dropout=max_dropout,
    )
    graph.output(graph.add("linear", h, features=task.signature.output_shape[0]))
    hyperparameters = gradient_descent(trial, min_lr, max_lr)
    return Candidate(graph, hyperparameters | penalties(trial, task, regularization))


@hookimpl
def register_spaces() -> Mapping[str, Callable[..., Candidate]]:
    return {"residual_mlp": residual_mlp}
