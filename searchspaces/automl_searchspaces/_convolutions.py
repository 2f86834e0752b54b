"""Depthwise-separable and strided convolutions, as operations.

Sources: F. Chollet: Xception, arXiv 1610.02357 (depthwise-separable convolutions); J. T.
Springenberg et al.: Striving for Simplicity, arXiv 1412.6806 (strides instead of pooling).
"""

from collections.abc import Sequence

from torch import nn

from automl import Algebra, Operation, declare

Shapes = Sequence[tuple[int, ...]]


def _separable(shapes: Shapes, channels: int, kernel: int = 3) -> nn.Module:
    inputs = shapes[0][0]
    depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, channels, 1)
    # Initialized like plain convolutions (He et al., arXiv 1502.01852); no ReLU follows the first.
    nn.init.kaiming_normal_(depthwise.weight, nonlinearity="linear")
    nn.init.kaiming_normal_(pointwise.weight, nonlinearity="relu")
    nn.init.zeros_(pointwise.bias)  # type: ignore[arg-type]
    return nn.Sequential(depthwise, pointwise)


def _separable_shape(shapes: Shapes, channels: int, kernel: int = 3) -> tuple[int, ...]:
    _, height, width = shapes[0]
    if kernel % 2 == 0:
        raise ValueError(f"its kernel must be odd, got {kernel}")
    return channels, height, width


def _strided(shapes: Shapes) -> nn.Module:
    channels = shapes[0][0]
    return nn.Conv2d(channels, channels, 2, stride=2)


def _strided_shape(shapes: Shapes) -> tuple[int, ...]:
    """Halve the sides, as pooling does."""
    channels, height, width = shapes[0]
    if min(height, width) < 2:
        raise ValueError("it needs images of at least 2x2")
    return channels, height // 2, width // 2


# The bias makes both non-linear; permuting channels on either side only permutes weights.
_CONVOLUTION = Algebra(parametric=True, exchangeable=True)

SEPARABLE = declare(
    Operation("separable_conv2d", _separable, _separable_shape, algebra=_CONVOLUTION)
)
STRIDED = declare(Operation("strided_conv2d", _strided, _strided_shape, algebra=_CONVOLUTION))
