"""The standard operations of a Graph, each declared once with its module, shape and algebra."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automl.decisions import Open
from automl.graph import Algebra, Graph, Operation, Shape, declare
from automl.nn import Dropout

__all__ = ["Graph"]

Shapes = Sequence[Shape]


class _Function(nn.Module):
    """A parameter-free operation of several inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _same(shapes: Shapes) -> Shape:
    if len(set(shapes)) != 1:
        raise ValueError("its inputs must have one shape")
    return shapes[0]


def _image(shapes: Shapes) -> tuple[int, int, int]:
    if len(shapes[0]) != 3:
        raise ValueError("it needs images of shape (channels, height, width)")
    channels, height, width = shapes[0]
    return channels, height, width


def _window(size: int, kernel: int, stride: int, padding: int) -> int:
    length = (size + 2 * padding - kernel) // stride + 1
    if length < 1:
        raise ValueError(f"a window of {kernel} does not fit a side of {size}")
    return length


# Layers with weights.
def _linear_shape(shapes: Shapes, features: int, bias: bool = True) -> Shape:
    return (*shapes[0][:-1], features)


def _conv_shape(
    shapes: Shapes, channels: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> Shape:
    _, height, width = _image(shapes)
    pad = kernel // 2
    sides = (_window(side, kernel, stride, pad) for side in (height, width))
    return (channels, *sides)


def _conv2d(
    shapes: Shapes, channels: int, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Module:
    module = nn.Conv2d(shapes[0][0], channels, kernel, stride, kernel // 2, bias=bias)
    # He et al., arXiv 1502.01852: signals keep their size through many layers even where
    # nothing normalises them; torch's own default shrinks them.
    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def _batch_norm(shapes: Shapes) -> nn.Module:
    kind = {1: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(shapes[0])]
    return kind(shapes[0][0])


def _batch_norm_shape(shapes: Shapes) -> Shape:
    if len(shapes[0]) not in (1, 3):
        raise ValueError("it needs vectors or images")
    return shapes[0]


def _weighted(bias: bool = True, **_: Any) -> Algebra:
    return Algebra(parametric=True, linear=not bias, zero_preserving=not bias)


declare(
    Operation(
        "linear",
        lambda shapes, features, bias=True: nn.Linear(shapes[0][-1], features, bias),
        _linear_shape,
        algebra=_weighted,
    )
)
declare(
    Operation(
        "conv2d",
        _conv2d,
        _conv_shape,
        algebra=_weighted,
    )
)
declare(Operation("batch_norm", _batch_norm, _batch_norm_shape, algebra=Algebra(parametric=True)))
declare(
    Operation(
        "layer_norm",
        lambda shapes: nn.LayerNorm(shapes[0]),
        _same,
        algebra=Algebra(parametric=True),
    )
)


# Elementwise functions of one input.
def _elementwise(name: str, module: Callable[[], nn.Module], algebra: Algebra) -> None:
    declare(Operation(name, lambda shapes: module(), _same, algebra=algebra))


_elementwise(
    "identity",
    nn.Identity,
    Algebra(identity=True, linear=True, zero_preserving=True, idempotent=True, involutive=True),
)
_elementwise("relu", nn.ReLU, Algebra(zero_preserving=True, idempotent=True))
_elementwise("gelu", nn.GELU, Algebra(zero_preserving=True))
_elementwise("silu", nn.SiLU, Algebra(zero_preserving=True))
_elementwise("tanh", nn.Tanh, Algebra(zero_preserving=True))
_elementwise("sigmoid", nn.Sigmoid, Algebra())
_elementwise(
    "zero",
    lambda: _Function(torch.zeros_like),
    Algebra(linear=True, zero_preserving=True, idempotent=True),
)
_elementwise(
    "negate",
    lambda: _Function(torch.neg),
    Algebra(linear=True, zero_preserving=True, involutive=True),
)


def _dropout_shape(shapes: Shapes, p: float | Open = 0.5) -> Shape:
    if not isinstance(p, Open) and not 0 <= p < 1:
        raise ValueError(f"its rate must lie in [0, 1), got {p}")
    return _same(shapes)


declare(
    Operation(
        "dropout",
        lambda shapes, p=0.5: Dropout(p),
        _dropout_shape,
        algebra=Algebra(zero_preserving=True),
        openable=frozenset({"p"}),
    )
)


# Functions of several inputs.
def _sum(*inputs: Tensor) -> Tensor:
    total = inputs[0]
    for term in inputs[1:]:
        total = total + term
    return total


def _product(*inputs: Tensor) -> Tensor:
    total = inputs[0]
    for factor in inputs[1:]:
        total = total * factor
    return total


def _concat_shape(shapes: Shapes) -> Shape:
    if len({shape[1:] for shape in shapes}) != 1:
        raise ValueError("its inputs may differ in their first dimension only")
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


declare(
    Operation(
        "add",
        lambda shapes: _Function(_sum),
        _same,
        inputs=None,
        algebra=Algebra(commutative=True, linear=True, zero_preserving=True),
    )
)
declare(
    Operation(
        "multiply",
        lambda shapes: _Function(_product),
        _same,
        inputs=None,
        algebra=Algebra(commutative=True, zero_preserving=True),
    )
)
declare(
    Operation(
        "subtract",
        lambda shapes: _Function(torch.sub),
        _same,
        inputs=2,
        algebra=Algebra(linear=True, zero_preserving=True),
    )
)
declare(
    Operation(
        "concat",
        lambda shapes: _Function(lambda *inputs: torch.cat(inputs, 1)),
        _concat_shape,
        inputs=None,
        algebra=Algebra(linear=True, zero_preserving=True),
    )
)


# Changes of shape.
def _pool_shape(shapes: Shapes, kernel: int = 2, stride: int | None = None) -> Shape:
    channels, height, width = _image(shapes)
    step = stride or kernel
    return (channels, _window(height, kernel, step, 0), _window(width, kernel, step, 0))


declare(
    Operation(
        "flatten",
        lambda shapes: nn.Flatten(),
        lambda shapes: (math.prod(shapes[0]),),
        algebra=Algebra(linear=True, zero_preserving=True, idempotent=True),
    )
)
declare(
    Operation(
        "max_pool2d",
        lambda shapes, kernel=2, stride=None: nn.MaxPool2d(kernel, stride),
        _pool_shape,
        algebra=Algebra(zero_preserving=True),
    )
)
declare(
    Operation(
        "avg_pool2d",
        lambda shapes, kernel=2, stride=None: nn.AvgPool2d(kernel, stride),
        _pool_shape,
        algebra=Algebra(linear=True, zero_preserving=True),
    )
)
declare(
    Operation(
        "global_avg_pool2d",
        lambda shapes: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda shapes: (_image(shapes)[0],),
        algebra=Algebra(linear=True, zero_preserving=True),
    )
)
