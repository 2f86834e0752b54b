"""Layers whose width or kernel may be an open decision, and that accept narrower inputs.

They have the weights of the widest layer. A narrower one has the first channels of these, and the
centre of the kernel (H. Cai et al.: Once-for-All, arXiv 1908.09791).
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from automl.errors import OpenDecisionError
from automl.space.decisions import MANY, Open, values_of
from automl.space.layers import OpenLayer, first
from automl.space.uses import Openable, Scope

_SIZE = Openable(Scope.BATCH, structural=True)


def sizes(size: int | Open, what: str) -> tuple[int, ...]:
    """Return all values of a size, which may be open.

    Args:
        size: The size.
        what: What it is, for error messages.

    Raises:
        ValueError: A value is not a whole number of at least 1, or there are too many.
    """
    values = size.values() if isinstance(size, Open) else (size,)
    of = f" of decision {size.name!r}" if isinstance(size, Open) else ""
    if values is None:
        raise ValueError(
            f"its {what}{of} must be one of at most {MANY:,} whole numbers, not "
            f"{values_of(size.distribution)}"  # type: ignore[union-attr]
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"its {what}{of} must be a whole number of at least 1, got {value!r}")
    return values


def kernels(kernel: int | Open) -> tuple[int, ...]:
    """Return all values of a kernel's side, which may be open.

    Raises:
        ValueError: They are not whole numbers, or not all odd or all even.
    """
    values = sizes(kernel, "kernel")
    if len({value % 2 for value in values}) > 1:
        raise ValueError(
            f"the kernels of decision {kernel.name!r} must be all odd or all even, so that each "  # type: ignore[union-attr]
            f"is the centre of a larger one; got {', '.join(map(str, values))}"
        )
    return values


class _Sized(OpenLayer):
    """A layer with open sizes."""

    def _hold_sizes(self, **held: int | Open) -> None:
        """Hold the largest value of each size that is open."""
        self._allowed: dict[str, frozenset[int]] = {}
        for attribute, size in held.items():
            if isinstance(size, Open):
                self.open_decisions[attribute] = size
                self._allowed[attribute] = frozenset(sizes(size, attribute))
                setattr(self, attribute, max(self._allowed[attribute]))

    def taken(self, attribute: str, value: Any) -> Any:
        """Return the size for a value of the decision.

        Raises:
            OpenDecisionError: The decision has no such value.
        """
        decision = self.open_decisions[attribute]
        if isinstance(value, Tensor) and value.dim() == 0:
            value = value.item()
        size = None if isinstance(value, Tensor) else decision.value(value)
        if not isinstance(size, Integral) or size not in self._allowed[attribute]:
            raise OpenDecisionError(
                f"{attribute!r} of {type(self).__name__} takes a value of decision "
                f"{decision.name!r}, got {value!r}",
                decision.name,
            )
        return int(size)


class Linear(nn.Linear, _Sized):
    """A linear layer whose number of outputs may be open; it reads inputs of at most its width.

    Args:
        in_features: The largest number of inputs.
        features: The number of outputs, which may be an open decision.
        bias: Whether it adds a bias.
    """

    openable: ClassVar[Mapping[str, Openable]] = {"features": _SIZE}
    features: int | None = None

    def __init__(self, in_features: int, features: int | Open, bias: bool = True) -> None:
        super().__init__(in_features, max(sizes(features, "features")), bias)
        self._hold_sizes(features=features)

    def forward(self, input: Tensor) -> Tensor:
        rows = self.out_features if self.features is None else self.features
        weight = self.weight[:rows, : input.shape[-1]].contiguous()
        return functional.linear(input, weight, None if self.bias is None else self.bias[:rows])


class Conv2d(nn.Conv2d, _Sized):
    """A convolution whose channels and kernel may be open; it reads inputs of at most its width.

    The padding is that of the largest kernel. Smaller ones have less, so that the image keeps its
    size. The groups are 1 or, for a depthwise convolution, the channels: it then has the width of
    its input.

    Args:
        in_channels: The largest number of input channels.
        channels: The number of output channels, which may be an open decision.
        kernel: The side of the kernel, which may be an open decision.
        stride: The stride.
        padding: The padding of the largest kernel.
        groups: 1 or `in_channels`.
        bias: Whether it adds a bias.
    """

    openable: ClassVar[Mapping[str, Openable]] = {"channels": _SIZE, "kernel": _SIZE}
    channels: int | None = None
    kernel: int | None = None

    def __init__(
        self,
        in_channels: int,
        channels: int | Open,
        kernel: int | Open,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        most, sides = max(sizes(channels, "channels")), kernels(kernel)
        super().__init__(in_channels, most, max(sides), stride, padding, groups=groups, bias=bias)
        if (max(sides) - min(sides)) // 2 > padding:
            raise ValueError(
                f"a kernel of {min(sides)} does not fit: with a padding of {padding}, it would "
                f"make a larger image than one of {max(sides)}"
            )
        if groups > 1 and isinstance(channels, Open):
            raise ValueError("a convolution in groups has the width of its input")
        self._hold_sizes(channels=channels, kernel=kernel)

    def forward(self, input: Tensor) -> Tensor:
        inputs, depthwise = input.shape[1], self.groups > 1
        widest = self.out_channels if self.channels is None else self.channels
        rows = self.out_channels // self.groups * inputs if depthwise else widest
        margin = 0 if self.kernel is None else (self.kernel_size[0] - self.kernel) // 2
        weight = self.weight[:rows, : 1 if depthwise else inputs]
        if margin:
            weight = weight[:, :, margin:-margin, margin:-margin]
        return functional.conv2d(
            input,
            weight.contiguous(),
            None if self.bias is None else self.bias[:rows],
            self.stride,
            _without(margin, self.padding, self.dilation),
            self.dilation,
            inputs if depthwise else 1,
        )

    def part(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return the part that a closed convolution has: first channels, centre of the kernel."""
        tensor: Tensor = getattr(self, name)
        for dim in range(2, len(shape)):
            tensor = tensor.narrow(dim, (tensor.shape[dim] - shape[dim]) // 2, shape[dim])
        return first(tensor, shape)


def _without(
    margin: int, padding: str | tuple[int, ...], dilation: tuple[int, ...]
) -> str | tuple[int, ...]:
    if isinstance(padding, str):
        return padding
    return tuple(each - margin * step for each, step in zip(padding, dilation, strict=True))


class _BatchNorm(nn.modules.batchnorm._BatchNorm, _Sized):
    """Batch normalisation of at most its channels; their statistics are the first ones."""

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        width = input.shape[1]
        share = 0.0 if self.momentum is None else self.momentum
        kept = not self.training or self.track_running_stats
        if self.training and kept and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                share = 1.0 / float(self.num_batches_tracked)
        return functional.batch_norm(
            input,
            _first(self.running_mean if kept else None, width),
            _first(self.running_var if kept else None, width),
            _first(self.weight, width),
            _first(self.bias, width),
            self.training or self.running_mean is None,
            share,
            self.eps,
        )


def _first(tensor: Tensor | None, size: int) -> Tensor | None:
    return None if tensor is None else tensor[:size]


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Batch normalisation of vectors that are at most as wide as the layer.

    Narrower ones use and update the first statistics and weights.
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Batch normalisation of images with at most the layer's channels.

    Narrower ones use and update the first statistics and weights.
    """


class LayerNorm(nn.LayerNorm, _Sized):
    """Layer normalisation of inputs that are at most as wide as the layer."""

    def forward(self, input: Tensor) -> Tensor:
        shape = input.shape[input.dim() - len(self.normalized_shape) :]
        weight, bias = (
            None if each is None else first(each, shape).contiguous()
            for each in (self.weight, self.bias)
        )
        return functional.layer_norm(input, shape, weight, bias, self.eps)


_NARROWING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.LayerNorm: LayerNorm,
}


def narrowing(module: nn.Module) -> nn.Module:
    """Let the layers of a module accept narrower inputs.

    Raises:
        ValueError: A convolution has several groups, or its padding is not of zeros.
    """
    for layer in module.modules():
        kind = _NARROWING.get(type(layer))
        if kind is None:
            continue
        if isinstance(layer, nn.Conv2d):
            _check_convolution(layer)
        # The weights, hooks and settings stay; torch's parametrizations do the same.
        layer.__class__ = kind
        vars(layer)["open_decisions"] = {}
    return module


def _check_convolution(layer: nn.Conv2d) -> None:
    if layer.groups not in (1, layer.in_channels) or layer.padding_mode != "zeros":
        raise ValueError(f"a convolution with these settings takes no narrower inputs: {layer}")
