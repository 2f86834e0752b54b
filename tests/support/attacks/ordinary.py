"""Ordinary near misses: functions that differ in one small detail."""

import torch
from torch import nn
from torch.nn import functional

from attacks.parts import CLASSES, WIDTH, Build, conv, hidden, kind, lin, of_images

LAYER = {"layer": lin()}


def imaged(work, **layers) -> Build:
    """A convolution, some work on it, and a head over means."""
    return of_images(
        lambda m, x: m.head(work(m, m.first(x)).mean((2, 3))),
        first=conv(),
        **layers,
        head=lin(4, CLASSES),
    )


def activated(function) -> Build:
    return hidden(lambda m, h: function(m.layer(h)), **LAYER)


def normed(**options) -> Build:
    return hidden(lambda m, h: m.norm(h), norm=lambda: nn.LayerNorm(WIDTH, **options))


def initialized(change) -> Build:
    """A layer with another initial weight."""

    def layer():
        made = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            change(made.weight)
        return made

    return hidden(lambda m, h: m.layer(h).tanh(), layer=layer)


def in_evaluation(change) -> Build:
    """Another function in evaluation mode."""
    return hidden(lambda m, h: h.tanh() if m.training else change(h.tanh()))


def parted(first, second) -> Build:
    return hidden(lambda m, h: first(m.layer(h)) + second(m.other(h.sin())), **LAYER, other=lin())


def same(h):
    return h


def zero_parameter():
    return nn.Parameter(torch.zeros(()))


def rezero(h, gate, layer):
    return h + gate * layer(h).tanh()


PLAIN = hidden(lambda m, h: m.layer(h).tanh(), **LAYER)
RESIDUAL = hidden(lambda m, h: h + m.layer(h).tanh(), **LAYER)
DIFFER = {
    "relu and gelu": (activated(torch.relu), activated(functional.gelu)),
    "silu and gelu": (activated(functional.silu), activated(functional.gelu)),
    "gelu, exact and by tanh": (
        activated(functional.gelu),
        activated(lambda h: functional.gelu(h, approximate="tanh")),
    ),
    "leaky by .01 and .02": (
        activated(functional.leaky_relu),
        activated(lambda h: functional.leaky_relu(h, 0.02)),
    ),
    "a residual and none": (RESIDUAL, PLAIN),
    "a residual and twice": (RESIDUAL, hidden(lambda m, h: h + 2 * m.layer(h).tanh(), **LAYER)),
    "a residual before and after the activation": (
        RESIDUAL,
        hidden(lambda m, h: (h + m.layer(h)).tanh(), **LAYER),
    ),
    "a residual and one whose gradient stops": (
        RESIDUAL,
        hidden(lambda m, h: h.detach() + m.layer(h).tanh(), **LAYER),
    ),
    "two branches and one detached": (parted(same, same), parted(same, torch.detach)),
    "one branch detached and the other": (parted(torch.detach, same), parted(same, torch.detach)),
    "a branch doubled forward, not backward": (
        parted(same, lambda h: h + h.detach()),
        parted(same, lambda h: 2 * h),
    ),
    "doubled in evaluation mode and not": (in_evaluation(lambda h: 2 * h), in_evaluation(same)),
    "doubled without gradients and not": (
        hidden(lambda m, h: h.tanh() * (1 if torch.is_grad_enabled() else 2)),
        in_evaluation(same),
    ),
    "clamped in evaluation mode and not": (
        in_evaluation(lambda h: h.clamp(-0.5, 0.5)),
        in_evaluation(same),
    ),
    "bias and none": (PLAIN, hidden(lambda m, h: m.layer(h).tanh(), layer=lin(bias=False))),
    "bias of zero and none": (
        hidden(lambda m, h: (h + m.bias).tanh(), bias=lambda: nn.Parameter(torch.zeros(WIDTH))),
        hidden(lambda m, h: h.tanh()),
    ),
    "normalized with 1e-5 and 1e-3": (normed(), normed(eps=1e-3)),
    "normalized with weights and without": (normed(), normed(elementwise_affine=False)),
    "normalized before and after a residual": (
        hidden(lambda m, h: h + m.norm(m.layer(h)), **LAYER, norm=lambda: nn.LayerNorm(WIDTH)),
        hidden(lambda m, h: m.norm(h + m.layer(h)), **LAYER, norm=lambda: nn.LayerNorm(WIDTH)),
    ),
    "weights drawn half as large": (initialized(lambda w: w.mul_(0.5)), initialized(same)),
    "weights drawn of a normal distribution": (
        initialized(lambda w: nn.init.normal_(w, std=3**-0.5 / 4)),
        initialized(same),
    ),
    "kernels of 3 and 5": (
        imaged(lambda m, h: m.last(h.relu()), last=conv(4, 4)),
        imaged(lambda m, h: m.last(h.relu()), last=conv(4, 4, 5)),
    ),
    "padding by zeros and by reflection": (
        imaged(lambda m, h: m.last(h.relu()), last=conv(4, 4)),
        imaged(lambda m, h: m.last(h.relu()), last=conv(4, 4, padding_mode="reflect")),
    ),
    "average and max pooling": (
        imaged(lambda m, h: m.last(functional.avg_pool2d(h, 2)), last=conv(4, 4)),
        imaged(lambda m, h: m.last(functional.max_pool2d(h, 2)), last=conv(4, 4)),
    ),
    "groups of 1 and 2": (
        imaged(lambda m, h: m.last(h), last=conv(4, 4)),
        imaged(lambda m, h: m.last(h), last=conv(4, 4, groups=2)),
    ),
    "softmax over features and over examples": (
        hidden(lambda m, h: h.softmax(1) * 9),
        hidden(lambda m, h: h.softmax(0) * 9),
    ),
    "width of 16 and 17": (
        hidden(lambda m, h: m.back(m.layer(h).relu()), layer=lin(), back=lin()),
        hidden(
            lambda m, h: m.back(m.layer(h).relu()), layer=lin(WIDTH, WIDTH + 1), back=lin(WIDTH + 1)
        ),
    ),
    "a chain of gates at zero and gates side by side": (
        hidden(
            lambda m, h: rezero(rezero(h, m.one, m.layer), m.two, m.other),
            **(LAYER | {"other": lin(), "one": zero_parameter, "two": zero_parameter}),
        ),
        hidden(
            lambda m, h: rezero(h, m.one, m.layer) + rezero(h, m.two, m.other) - h,
            **(LAYER | {"other": lin(), "one": zero_parameter, "two": zero_parameter}),
        ),
    ),
    "one layer twice and two": (
        hidden(lambda m, h: m.layer(m.layer(h).tanh()), **LAYER),
        hidden(lambda m, h: m.other(m.layer(h).tanh()), **LAYER, other=lin()),
    ),
    "a gate at zero and its branch": (
        hidden(lambda m, h: h + m.gate * m.layer(h).relu(), **LAYER, gate=zero_parameter),
        hidden(lambda m, h: h + m.gate * m.layer(h).tanh(), **LAYER, gate=zero_parameter),
    ),
}


PAIRS = kind("ordinary", DIFFER, {})
