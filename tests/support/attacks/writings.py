"""Equal functions with different code: classes, functions, names, order, packing."""

import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from attacks.parts import CLASSES, WIDTH, Build, conv, hidden, kind, lin, of, of_images


class Renamed(nn.Linear):
    """A subclass that changes nothing."""


class ByProducts(nn.Linear):
    """A subclass that computes the same with its own code."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


def drawn(inner, outer):
    """A weight and a bias, initialised like those of `nn.Linear`."""
    weight, bias = torch.empty(outer, inner), torch.empty(outer)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    nn.init.uniform_(bias, -1 / math.sqrt(inner), 1 / math.sqrt(inner))
    return nn.Parameter(weight), nn.Parameter(bias)


class Custom(nn.Module):
    """A linear layer with its own parameters, under other names."""

    def __init__(self, inner=WIDTH, outer=WIDTH) -> None:
        super().__init__()
        self.w, self.b = drawn(inner, outer)

    def forward(self, x):
        return self.compute(x)

    def compute(self, x):
        return x @ self.w.T + self.b


class ByFunction(Custom):
    def compute(self, x):
        return functional.linear(x, self.w, self.b)


class ByEinsum(Custom):
    def compute(self, x):
        return torch.einsum("ni,oi->no", x, self.w) + self.b


class ByAddmm(Custom):
    def compute(self, x):
        return torch.addmm(self.b, x, self.w.t())


class ByBroadcast(Custom):
    def compute(self, x):
        return (x[:, None] * self.w).sum(2) + self.b


class Transposed(Custom):
    """Stores its weight as [inputs, outputs]."""

    def __init__(self, inner=WIDTH, outer=WIDTH) -> None:
        super().__init__(inner, outer)
        self.w = nn.Parameter(self.w.detach().T.clone())

    def compute(self, x):
        return x @ self.w + self.b


class Raw(nn.Module):
    """Three layers whose weights are in a list of the module that uses them."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (64, WIDTH), (WIDTH, WIDTH), (WIDTH, CLASSES)
        self.weights = nn.ParameterList(each for size in sizes for each in drawn(*size))

    def forward(self, x):
        x, weights = x.flatten(1), list(self.weights)
        for number in range(3):
            x = functional.linear(x, *weights[2 * number : 2 * number + 2])
            x = x.relu() if number < 2 else x
        return x


class Thin(nn.Conv2d):
    """A subclass that changes nothing."""


class RawConv(nn.Module):
    """A convolution with its own parameters, initialised like those of `nn.Conv2d`."""

    def __init__(self, inner, outer, kernel) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.empty(outer, inner, kernel, kernel))
        nn.init.kaiming_uniform_(self.kernels, a=math.sqrt(5))
        bound = 1 / math.sqrt(inner * kernel * kernel)
        self.shift = nn.Parameter(torch.empty(outer).uniform_(-bound, bound))
        self.pad = kernel // 2

    def forward(self, x):
        return functional.conv2d(x, self.kernels, self.shift, padding=self.pad)


class RawNorm(nn.Module):
    """Batch normalization with torch's function."""

    def __init__(self, width) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x):
        rest = (self.scale, self.shift, self.training)
        return functional.batch_norm(x, self.mean, self.variance, *rest)


class Listed(nn.Module):
    """Layers in a list, made and stored in a given order."""

    def __init__(self, order) -> None:
        super().__init__()
        made = {n: nn.Linear(WIDTH, WIDTH) for n in order}
        self.stem, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layers = nn.ModuleList(made.values())
        self.places = [list(made).index(n) for n in range(3)]

    def forward(self, x):
        h = self.stem(x.flatten(1))
        for place in self.places:
            h = h + self.layers[place](h).tanh()
        return self.head(h)


class Attention(nn.Module):
    """Attention over the rows of an image, with queries, keys and values in three layers or one."""

    def __init__(self, packed) -> None:
        super().__init__()
        self.packed = packed
        if packed:
            self.all = nn.Linear(8, 24, bias=False)
        else:
            self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        rows = x.reshape(-1, 8, 8)
        parts = (self.query, self.key, self.value) if not self.packed else ()
        q, k, v = self.all(rows).chunk(3, 2) if self.packed else (part(rows) for part in parts)
        return self.head(((q @ k.mT / 8**0.5).softmax(2) @ v).flatten(1))


class TorchAttention(Attention):
    """The same with torch's function."""

    def forward(self, x):
        rows = x.reshape(-1, 8, 8)
        found = [part(rows) for part in (self.query, self.key, self.value)]
        return self.head(functional.scaled_dot_product_attention(*found).flatten(1))


class ThreeLayers(nn.Module):
    """A network of three layers without `nn.Sequential`."""

    def __init__(self, backwards=False) -> None:
        super().__init__()
        sizes = {"one": (64, WIDTH), "two": (WIDTH, WIDTH), "three": (WIDTH, CLASSES)}
        for name in reversed(sizes) if backwards else sizes:
            setattr(self, name, nn.Linear(*sizes[name]))

    def forward(self, x):
        return self.three(functional.relu(self.two(torch.relu(self.one(x.flatten(1))))))


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        nn.Linear(WIDTH, CLASSES),
    )


def in_sequences() -> nn.Module:
    inner = nn.Sequential(OrderedDict(hidden=nn.Linear(WIDTH, WIDTH), after=nn.ReLU(inplace=True)))
    outer = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), inner)
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), body=outer, head=nn.Linear(WIDTH, CLASSES)))


def layer(make) -> Build:
    return hidden(lambda m, h: m.layer(h).tanh(), layer=make)


def imaged(make, after=lambda m, h: h.relu(), **layers) -> Build:
    """A convolution that another reads, and a head over means."""
    return of_images(
        lambda m, x: m.head(m.last(after(m, m.first(x))).mean((2, 3))),
        **{"first": make, **layers, "last": conv(4, 6), "head": lin(6, CLASSES)},
    )


class Dead(ThreeLayers):
    """The same with layers that have no effect, one of which even runs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.ignored = nn.Linear(3, 5), nn.Linear(64, WIDTH)

    def forward(self, x):
        self.ignored(x.flatten(1))
        return super().forward(x)


def bins(x):
    """The brightness of pixels in four steps."""
    return (x.clamp(0, 0.99) * 4).long()


LINEAR = layer(lin())
EQUAL = {
    "nn.Linear and a subclass": (LINEAR, layer(lambda: Renamed(WIDTH, WIDTH))),
    "nn.Linear and a subclass by products": (LINEAR, layer(lambda: ByProducts(WIDTH, WIDTH))),
    "nn.Linear and parameters of its own": (LINEAR, layer(Custom)),
    "nn.Linear and F.linear": (LINEAR, layer(ByFunction)),
    "nn.Linear and einsum": (LINEAR, layer(ByEinsum)),
    "nn.Linear and addmm": (LINEAR, layer(ByAddmm)),
    "nn.Linear and sums of products": (LINEAR, layer(ByBroadcast)),
    "nn.Linear and a weight held transposed": (LINEAR, layer(Transposed)),
    "parameters of its own and einsum": (layer(Custom), layer(ByEinsum)),
    "layers and raw parameters in a list": (sequence, Raw),
    "a sequence and written out": (sequence, ThreeLayers),
    "a sequence and sequences within": (sequence, in_sequences),
    "made in another order": (ThreeLayers, lambda: ThreeLayers(backwards=True)),
    "dead branches": (ThreeLayers, Dead),
    "a list of layers in another order": (
        lambda: Listed((0, 1, 2)),
        lambda: Listed((2, 0, 1)),
    ),
    "queries, keys and values packed": (lambda: Attention(False), lambda: Attention(True)),
    "attention by torch's function": (lambda: Attention(False), lambda: TorchAttention(False)),
    "nn.Conv2d and a subclass": (imaged(conv()), imaged(lambda: Thin(1, 4, 3, padding=1))),
    "nn.Conv2d and F.conv2d": (imaged(conv()), imaged(lambda: RawConv(1, 4, 3))),
    "a convolution of 1 and a linear layer": (
        imaged(conv(), lambda m, h: m.mix(h), mix=conv(4, 4, 1)),
        imaged(
            conv(), lambda m, h: m.mix(h.movedim(1, 3)).movedim(3, 1), mix=lambda: nn.Linear(4, 4)
        ),
    ),
    "nn.BatchNorm2d and F.batch_norm": (
        imaged(conv(), lambda m, h: m.norm(h).relu(), norm=lambda: nn.BatchNorm2d(4)),
        imaged(conv(), lambda m, h: m.norm(h).relu(), norm=lambda: RawNorm(4)),
    ),
    "nn.BatchNorm1d and F.batch_norm": (
        layer(lambda: nn.BatchNorm1d(WIDTH)),
        layer(lambda: RawNorm(WIDTH)),
    ),
    "nn.LayerNorm and F.layer_norm": (
        hidden(lambda m, h: m.norm(h), norm=lambda: nn.LayerNorm(WIDTH)),
        hidden(
            lambda m, h: functional.layer_norm(h, (WIDTH,), m.scale, m.shift),
            scale=lambda: nn.Parameter(torch.ones(WIDTH)),
            shift=lambda: nn.Parameter(torch.zeros(WIDTH)),
        ),
    ),
    "nn.Dropout and F.dropout": (
        hidden(lambda m, h: m.drop(h.tanh()), drop=lambda: nn.Dropout(0.25)),
        hidden(lambda m, h: functional.dropout(h.tanh(), 0.25, m.training)),
    ),
    "an embedding and one-hot rows": (
        of(lambda m, x: m.table(bins(x)).mean(1), table=lambda: nn.Embedding(4, CLASSES)),
        of(
            lambda m, x: (functional.one_hot(bins(x), 4).to(x.dtype) @ m.table).mean(1),
            table=lambda: nn.Parameter(torch.randn(4, CLASSES)),
        ),
    ),
    "a sum of two layers and the other way round": (
        hidden(lambda m, h: m.a(h) + m.b(h.sin()), a=lin(bias=False), b=lin(bias=False)),
        hidden(lambda m, h: m.b(h.sin()) + m.a(h), b=lin(bias=False), a=lin(bias=False)),
    ),
    "gelu by a layer and by its formula": (
        hidden(lambda m, h: nn.GELU()(h)),
        hidden(lambda m, h: h * (1 + torch.erf(h / 2**0.5)) / 2),
    ),
    "max pooling before and after a rectifier": (
        imaged(conv(), lambda m, h: functional.max_pool2d(h.relu(), 2)),
        imaged(conv(), lambda m, h: functional.max_pool2d(h, 2).relu()),
    ),
}
PAIRS = kind("writings", {}, EQUAL)
