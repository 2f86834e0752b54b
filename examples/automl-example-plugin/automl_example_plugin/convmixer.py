"""ConvMixer: patches, mixed by depthwise (space) and pointwise (channels) convolutions.

Source: A. Trockman, J. Z. Kolter: Patches Are All You Need?, arXiv 2201.09792.
"""

from collections.abc import Callable, Mapping, Sequence

import automl
from optuna.trial import BaseTrial
from torch import nn

Shape = tuple[int, ...]


def _depthwise(shapes: Sequence[Shape], kernel: int = 3) -> nn.Module:
    channels = shapes[0][0]
    return nn.Conv2d(channels, channels, kernel, padding="same", groups=channels, bias=False)


automl.declare(
    automl.Operation(
        "convmixer_depthwise",
        module=_depthwise,
        shape=lambda shapes, kernel=3: shapes[0],
        # Linear without a bias; permuting channels permutes the weights.
        algebra=automl.Algebra(
            parametric=True, linear=True, zero_preserving=True, channelwise=True
        ),
    )
)


def convmixer(
    trial: BaseTrial, task: automl.Task, *, max_depth: int = 4, max_width: int = 64
) -> automl.Candidate:
    """A small ConvMixer, for tasks with images; its activation may be left open.

    Args:
        max_depth: The largest number of blocks.
        max_width: The largest number of channels.
    """
    graph = automl.Graph()
    patch = trial.suggest_int("patch", 1, 2)
    width = trial.suggest_int("width", 8, max_width, log=True)
    kernel = trial.suggest_categorical("kernel", [3, 5])
    activation = trial.suggest_categorical("activation", ["relu", "gelu"])
    image = graph.input("image", task.signature.input_shape)
    h = graph.add("conv2d", image, channels=width, kernel=patch, stride=patch)
    h = graph.add("batch_norm", graph.add(activation, h))
    for _ in range(trial.suggest_int("depth", 1, max_depth)):
        mixed = graph.add("convmixer_depthwise", h, kernel=kernel)
        h = graph.add("add", h, graph.add("batch_norm", graph.add(activation, mixed)))
        h = graph.add("conv2d", h, channels=width, kernel=1)
        h = graph.add("batch_norm", graph.add(activation, h))
    h = graph.add("global_avg_pool2d", h)
    graph.output(graph.add("linear", h, features=task.signature.output_shape[0]))
    return automl.Candidate(graph, {"lr": trial.suggest_float("lr", 1e-3, 1e-1, log=True)})


@automl.hookimpl
def register_spaces() -> Mapping[str, Callable[..., automl.Candidate]]:
    """Offer the space by its name."""
    return {"convmixer": convmixer}
