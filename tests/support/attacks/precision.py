"""Lower precision by autocast, casts and parameters, which a probe in float64 may not show."""

import torch
from torch import nn
from torch.nn.functional import linear

from attacks.parts import CLASSES, WIDTH, Build, hidden, kind, lin

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Cast(nn.Module):
    """Three layers, some of them under autocast."""

    def __init__(self, dtype=None, layers=(0, 1, 2), enabled=True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([lin(64)(), lin()(), lin(WIDTH, CLASSES)()])
        self.dtype, self.cast, self.enabled = dtype, layers, enabled

    def forward(self, x):
        x = x.flatten(1)
        for number, layer in enumerate(self.layers):
            if self.dtype is None or number not in self.cast:
                x = layer(x).tanh()
            else:
                with torch.autocast("cpu", self.dtype, enabled=self.enabled):
                    x = layer(x).tanh()
                x = x.to(layer.weight.dtype)
        return x * 3


class Decorated(Cast):
    """The same with autocast as a decorator."""

    @torch.autocast("cpu", BF16)
    def work(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x

    def forward(self, x):
        return self.work(x.flatten(1)).to(self.layers[0].weight.dtype) * 3


def cast(*given, **rest) -> Build:
    return lambda: Cast(*given, **rest)


def cast_back(dtype) -> Build:
    """The values of a hidden layer cast to a type and back."""
    return hidden(lambda m, h: h.to(dtype).to(h.dtype).tanh() if dtype else h.tanh())


def computed(dtype) -> Build:
    """A layer computed in another type."""

    def work(m, h):
        if dtype is None:
            return m.layer(h)
        return linear(h.to(dtype), m.layer.weight.to(dtype), m.layer.bias.to(dtype)).to(h.dtype)

    return hidden(work, layer=lin())


class Held(nn.Module):
    """Three layers, one of which stores its parameters in another type."""

    def __init__(self, dtype=None) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=dtype)

    def forward(self, x):
        h = self.stem(x.flatten(1))
        return self.head(self.layer(h.to(self.layer.weight.dtype)).to(h.dtype).tanh())


def held(dtype=None) -> Build:
    return lambda: Held(dtype)


def quantized(steps) -> Build:
    """Values rounded to a number of steps, with straight-through gradients."""

    def work(m, h):
        h = h.tanh()
        return h + ((h * steps).round() / steps - h).detach()

    return hidden(work)


def in_int8(m, h):
    h = h.tanh()
    return h + ((h * 7).round().to(torch.int8).to(h.dtype) / 7 - h).detach()


DIFFER = {
    "autocast off and bfloat16": (cast(), cast(BF16)),
    "autocast off and float16": (cast(), cast(FP16)),
    "autocast bfloat16 and float16": (cast(BF16), cast(FP16)),
    "autocast off and around one layer": (cast(), cast(BF16, (1,))),
    "autocast around one layer and another": (cast(BF16, (0,)), cast(BF16, (1,))),
    "autocast around one layer and all": (cast(BF16, (0,)), cast(BF16)),
    "cast to half and not": (cast_back(None), cast_back(FP16)),
    "cast to bfloat16 and not": (cast_back(None), cast_back(BF16)),
    "cast to half and to bfloat16": (cast_back(FP16), cast_back(BF16)),
    "computed in bfloat16 and not": (computed(None), computed(BF16)),
    "computed in half and in bfloat16": (computed(FP16), computed(BF16)),
    "held in bfloat16 and not": (held(), held(BF16)),
    "held in half and in bfloat16": (held(FP16), held(BF16)),
    "doubled where the type is single and not": (
        hidden(lambda m, h: h * (2 if h.dtype is FP32 else 1)),
        hidden(lambda m, h: h),
    ),
    "floor of the type's smallest step and none": (
        hidden(lambda m, h: h.abs().clamp(min=1e4 * torch.finfo(h.dtype).eps ** 0.75).log()),
        hidden(lambda m, h: h.abs().clamp(min=1e-8).log()),
    ),
    "cast under no_grad and not": (
        hidden(lambda m, h: h.tanh()),
        hidden(lambda m, h: h.tanh() + (h.tanh().to(BF16).to(h.dtype) - h.tanh()).detach()),
    ),
    "quantized to 4 steps and 8": (quantized(4), quantized(8)),
    "quantized and not": (quantized(4), hidden(lambda m, h: h.tanh())),
}
EQUAL = {
    "autocast disabled and none": (cast(), cast(BF16, enabled=False)),
    "autocast around all and by a decorator": (cast(BF16), Decorated),
    "cast to single, which all is, and not": (cast_back(None), cast_back(FP32)),
    "cast by to and by a method": (
        cast_back(BF16),
        hidden(lambda m, h: h.bfloat16().to(h.dtype).tanh()),
    ),
    "quantized by rounding and by int8": (quantized(7), hidden(in_int8)),
}

PAIRS = kind("precision", DIFFER, EQUAL)
