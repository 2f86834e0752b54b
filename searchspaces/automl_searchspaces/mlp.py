"""Multilayer perceptrons: depth, widths, activation, regularisation and how to train them."""

from collections.abc import Callable, Mapping

import optuna

from automl import Candidate, Graph, Task, hookimpl
from automl_searchspaces._training import gradient_descent

_ACTIVATIONS = ["relu", "gelu", "silu", "tanh"]
_NORMALIZATIONS = ["identity", "batch_norm", "layer_norm"]


def mlp(
    trial: optuna.trial.BaseTrial,
    task: Task,
    *,
    max_layers: int = 3,
    min_width: int = 16,
    max_width: int = 256,
    max_dropout: float = 0.5,
    min_lr: float = 3e-4,
    max_lr: float = 3e-2,
) -> Candidate:
    """A multilayer perceptron on the flattened inputs of any task with vector outputs.

    The activation, the normalization and the dropout rate may be left open.
    """
    graph = Graph()
    h = graph.add("flatten", graph.input("x", task.signature.input_shape))
    activation = trial.suggest_categorical("activation", _ACTIVATIONS)
    normalization = trial.suggest_categorical("normalization", _NORMALIZATIONS)
    dropout = trial.suggest_float("dropout", 0.0, max_dropout)
    for layer in range(trial.suggest_int("layers", 1, max_layers)):
        width = trial.suggest_int(f"width_{layer}", min_width, max_width, log=True)
        h = graph.add(normalization, graph.add("linear", h, features=width))
        h = graph.add("dropout", graph.add(activation, h), p=dropout)
    graph.output(graph.add("linear", h, features=task.signature.output_shape[0]))
    return Candidate(graph, gradient_descent(trial, min_lr, max_lr))


@hookimpl
def register_spaces() -> Mapping[str, Callable[..., Candidate]]:
    return {"mlp": mlp}
