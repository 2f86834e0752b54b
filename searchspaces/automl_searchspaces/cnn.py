"""Convolutional networks: stages of convolutions that halve the image, then a linear head."""

from collections.abc import Callable, Mapping

import optuna

from automl import Candidate, CandidateError, Graph, Open, Task, hookimpl
from automl_searchspaces._training import gradient_descent

_ACTIVATIONS = ["relu", "gelu", "silu"]
_NORMALIZATIONS = ["identity", "batch_norm"]
_POOLINGS = ["max_pool2d", "avg_pool2d"]
_KERNELS = [3, 5]


def cnn(
    trial: optuna.trial.BaseTrial,
    task: Task,
    *,
    max_stages: int = 3,
    max_blocks: int = 2,
    min_channels: int = 8,
    max_channels: int = 32,
    max_dropout: float = 0.5,
    min_lr: float = 1e-3,
    max_lr: float = 3e-2,
) -> Candidate:
    """A convolutional network for tasks of images; each stage doubles the channels.

    min_channels, max_channels: of the first stage. The activation, the normalization, the
    pooling and the dropout rate may be left open.

    Raises:
        CandidateError: the task's inputs are no images of at least 2x2.
    """
    stages = trial.suggest_int("stages", 1, min(max_stages, _halvings(task)))
    channels = trial.suggest_int("channels", min_channels, max_channels, log=True)
    graph = Graph()
    h = graph.input("x", task.signature.input_shape)
    for stage in range(stages):
        width = channels * 2**stage
        h = _stage(graph, h, trial, stage, channels=width, max_blocks=max_blocks)
    h = graph.add("global_avg_pool2d", h)
    h = graph.add("dropout", h, p=trial.suggest_float("dropout", 0.0, max_dropout))
    graph.output(graph.add("linear", h, features=task.signature.output_shape[0]))
    return Candidate(graph, gradient_descent(trial, min_lr, max_lr))


def _halvings(task: Task) -> int:
    shape = task.signature.input_shape
    if len(shape) != 3 or min(shape[1:]) < 2:
        raise CandidateError(
            f"space cnn needs images of shape (channels, height, width), at least 2x2; "
            f"the task's inputs have shape {shape}: try space mlp"
        )
    return min(shape[1:]).bit_length() - 1


def _stage(
    graph: Graph,
    h: str,
    trial: optuna.trial.BaseTrial,
    stage: int,
    *,
    channels: int,
    max_blocks: int,
) -> str:
    activation: str | Open = trial.suggest_categorical("activation", _ACTIVATIONS)
    normalization: str | Open = trial.suggest_categorical("normalization", _NORMALIZATIONS)
    kernel = trial.suggest_categorical(f"kernel_{stage}", _KERNELS)
    for _ in range(trial.suggest_int(f"blocks_{stage}", 1, max_blocks)):
        h = graph.add("conv2d", h, channels=channels, kernel=kernel)
        h = graph.add(activation, graph.add(normalization, h))
    return graph.add(trial.suggest_categorical("pooling", _POOLINGS), h)


@hookimpl
def register_spaces() -> Mapping[str, Callable[..., Candidate]]:
    return {"cnn": cnn}
