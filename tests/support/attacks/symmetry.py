"""Equal branches of one input, under functions that do or do not depend on their difference."""

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

import automl
from attacks.parts import (
    CLASSES,
    STEM,
    WIDTH,
    Build,
    all_of,
    branches,
    conv,
    kind,
    lin,
    of,
    of_images,
    two_layers,
)

MEAN, MAX, MIN = (
    all_of(lambda t: t.mean(0)),
    all_of(lambda t: t.amax(0)),
    all_of(lambda t: t.amin(0)),
)
PRODUCT, MEDIAN = all_of(lambda t: t.prod(0)), all_of(lambda t: t.median(0).values)
SORTED = all_of(lambda t: torch.cat([*t.sort(0).values], 1))
BESIDE = all_of(lambda t: torch.cat([*t], 1))
SOFT_MAX = all_of(lambda t: (t.softmax(0) * t).sum(0))
VOTE = all_of(lambda t: t.softmax(2).mean(0))
SPREAD = all_of(lambda t: t.var(0))


def plain(h, *found):
    """Ignore the branches."""
    return h


def weighted(h, *found):
    return sum((number + 1) * each for number, each in enumerate(found))


TWO = {
    "max and mean": (branches(MAX), branches(MEAN)),
    "min and mean": (branches(MIN), branches(MEAN)),
    "max and min": (branches(MAX), branches(MIN)),
    "product and squared mean": (
        branches(PRODUCT),
        branches(all_of(lambda t: t.mean(0).square())),
    ),
    "distance and none": (branches(lambda h, a, b: h + (a - b).abs()), branches(plain)),
    "squared distance and none": (branches(lambda h, a, b: h + (a - b) ** 2), branches(plain)),
    "distance and squared distance": (
        branches(lambda h, a, b: h + (a - b).abs()),
        branches(lambda h, a, b: h + (a - b) ** 2),
    ),
    "distance of one input alone and its double": (
        branches(lambda h, a, b: (a - b).abs()),
        branches(lambda h, a, b: (a - b) ** 2),
    ),
    "rectified difference and none": (
        branches(lambda h, a, b: h + (a - b).relu()),
        branches(plain),
    ),
    "difference and none": (branches(lambda h, a, b: h + a - b), branches(plain)),
    "cosine and none": (
        branches(lambda h, a, b: h * cosine_similarity(a, b)[:, None]),
        branches(plain),
    ),
    "sorted and beside each other": (branches(SORTED, times=2), branches(BESIDE, times=2)),
    "weighted by softmax and mean": (branches(SOFT_MAX), branches(MEAN)),
    "vote and softmax of the mean": (
        branches(VOTE),
        branches(all_of(lambda t: t.mean(0).softmax(1))),
    ),
    "max plus mean and twice the mean": (
        branches(lambda h, a, b: torch.maximum(a, b) + (a + b) / 2),
        branches(lambda h, a, b: a + b),
    ),
    "tanh of a difference and none": (
        branches(lambda h, a, b: h + (a - b).tanh()),
        branches(plain),
    ),
    "hypotenuse and mean size": (
        branches(lambda h, a, b: (a**2 + b**2 + 1e-6).sqrt()),
        branches(lambda h, a, b: 2**0.5 * (((a + b) / 2) ** 2 + 5e-7).sqrt()),
    ),
}
THREE = {
    "max and mean of 3": (branches(MAX, 3), branches(MEAN, 3)),
    "median and mean of 3": (branches(MEDIAN, 3), branches(MEAN, 3)),
    "max and median of 3": (branches(MAX, 3), branches(MEDIAN, 3)),
    "min and mean of 3": (branches(MIN, 3), branches(MEAN, 3)),
    "product and cubed mean of 3": (
        branches(PRODUCT, 3),
        branches(all_of(lambda t: t.mean(0) ** 3), 3),
    ),
    "variance of 3 and none": (branches(lambda h, *t: h + SPREAD(h, *t), 3), branches(plain, 3)),
    "sorted and beside each other, of 3": (
        branches(SORTED, 3, times=3),
        branches(BESIDE, 3, times=3),
    ),
    "max of two of 3 and max of all": (
        branches(lambda h, a, b, c: torch.maximum(a, b) + c, 3),
        branches(lambda h, a, b, c: 2 * MAX(h, a, b, c), 3),
    ),
    "two distances of 3 and three": (
        branches(lambda h, a, b, c: h + (a - b).abs() + (b - c).abs(), 3),
        branches(lambda h, a, b, c: h + (a - b).abs() + (b - c).abs() + (c - a).abs(), 3),
    ),
}


def around(edges):
    """Six branches and a distance along each edge between them."""
    return branches(lambda h, *t: h + sum((t[i] - t[j]).abs() for i, j in edges), 6)


HEXAGON = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0))
RENUMBERED = ((3, 1), (1, 5), (5, 0), (0, 2), (2, 4), (4, 3))
TRIANGLES = ((0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3))

FOUR = {
    "max and mean of 4": (branches(MAX, 4), branches(MEAN, 4)),
    "lattice one way and the other": (
        branches(lambda h, a, b, c, d: torch.max(torch.min(a, b), torch.min(c, d)), 4),
        branches(lambda h, a, b, c, d: torch.min(torch.max(a, b), torch.max(c, d)), 4),
    ),
    "product of differences and none": (
        branches(lambda h, a, b, c, d: h + (a - b) * (c - d), 4),
        branches(plain, 4),
    ),
    "distances of two pairs and of a chain": (
        branches(lambda h, a, b, c, d: (a - b).abs() * (c - d).abs() + a + b + c + d, 4),
        branches(lambda h, a, b, c, d: (a - b).abs() * (b - c).abs() + a + b + c + d, 4),
    ),
    "sorted and beside each other, of 4": (
        branches(SORTED, 4, times=4),
        branches(BESIDE, 4, times=4),
    ),
    "hexagon and two triangles": (around(HEXAGON), around(TRIANGLES)),
}


def convolved(join, branch=None, count=2, backwards=False) -> Build:
    """Equal branches of convolutions on a hidden image."""
    branch = branch or (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)))
    names = [f"branch{number}" for number in range(count)]
    made = dict.fromkeys(reversed(names) if backwards else names, branch)

    def function(m, x):
        h = m.stem(x).relu()
        return m.head(join(h, *(getattr(m, name)(h) for name in names)).mean((2, 3)))

    return of_images(function, stem=conv(), **made, head=lin(4, CLASSES))


def nested(outer, inner) -> Build:
    """Two branches, each of which combines two branches of one hidden layer."""
    names = ("a", "b", "c", "d")

    def function(m, x):
        h = m.stem(x).tanh()
        a, b, c, d = (getattr(m, name)(h) for name in names)
        return m.head(outer(m.left(inner(a, b)), m.right(inner(c, d))))

    made = {name: lin() for name in (*names, "left", "right")}
    return of(function, **STEM, **made, head=lin(WIDTH, CLASSES))


def bare(join, times=1) -> Build:
    """Two layers that read the input directly."""
    made = {"a": lin(64), "b": lin(64)}
    return of(lambda m, x: m.head(join(m.a(x), m.b(x))), **made, head=lin(times * WIDTH, CLASSES))


DEEPER = {
    "max and mean of two layers each": (
        branches(MAX, 2, two_layers),
        branches(MEAN, 2, two_layers),
    ),
    "distance of two layers each and none": (
        branches(lambda h, a, b: h + (a - b).abs(), 2, two_layers),
        branches(plain, 2, two_layers),
    ),
    "product and squared mean of two layers each": (
        branches(PRODUCT, 2, two_layers),
        branches(all_of(lambda t: t.mean(0).square()), 2, two_layers),
    ),
    "max and mean of three of two layers": (
        branches(MAX, 3, two_layers),
        branches(MEAN, 3, two_layers),
    ),
    "max and mean of convolutions": (convolved(MAX), convolved(MEAN)),
    "distance of convolutions and none": (
        convolved(lambda h, a, b: h + (a - b).abs()),
        convolved(plain),
    ),
    "median and mean of three convolutions": (convolved(MEDIAN, count=3), convolved(MEAN, count=3)),
    "max of means and mean of maxima": (
        nested(torch.maximum, lambda a, b: (a + b) / 2),
        nested(lambda a, b: (a + b) / 2, torch.maximum),
    ),
    "mean of means and max of means": (
        nested(lambda a, b: (a + b) / 2, lambda a, b: (a + b) / 2),
        nested(torch.maximum, lambda a, b: (a + b) / 2),
    ),
    "max of the input's layers and mean": (
        bare(torch.maximum),
        bare(lambda a, b: (a + b) / 2),
    ),
    "distance alone, which is not constant, and its square": (
        bare(lambda a, b: (a - b).abs()),
        bare(lambda a, b: (a - b).square()),
    ),
}


class Rows(nn.Module):
    """A recurrent layer over the four quarters of a hidden vector."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, WIDTH, batch_first=True)

    def forward(self, h):
        return self.cell(h.reshape(-1, 4, 4))[1][0]


class Binned(nn.Module):
    """An embedding of the signs of a hidden vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, WIDTH)

    def forward(self, h):
        return self.table((h > 0).long()).mean(1)


class Scales(nn.Module):
    """A parameter that scales elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(WIDTH))

    def forward(self, h):
        return h * self.scale


class Features(nn.Module):
    """Random features that are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(WIDTH, WIDTH))

    def forward(self, h):
        return (h @ self.matrix).cos()


class Late(nn.Module):
    """Makes its weight when first called, without declaring it to torch."""

    def forward(self, h):
        if not hasattr(self, "weight"):
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)
        return h @ self.weight


class Paired(nn.Module):
    """A bilinear layer of a vector and itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Bilinear(WIDTH, WIDTH, WIDTH)

    def forward(self, h):
        return self.layer(h, h)


def max_and_mean(branch) -> tuple[Build, Build]:
    return branches(MAX, 2, branch), branches(MEAN, 2, branch)


def reread(join) -> Build:
    """Two layers, one of which reads a copy of the other's input."""
    made = {"a": lin(), "b": lin()}

    def function(m, x):
        h = m.stem(x).tanh()
        return m.head(join(m.a(h), m.b(h.clone() * 1.0)))

    return of(function, **STEM, **made, head=lin(WIDTH, CLASSES))


WEIGHTS = {
    "max and mean of recurrent layers": max_and_mean(Rows),
    "max and mean of embeddings": max_and_mean(Binned),
    "max and mean of scales": max_and_mean(Scales),
    "max and mean of bilinear layers": max_and_mean(Paired),
    "max and mean of lazy layers": max_and_mean(lambda: nn.LazyLinear(WIDTH)),
    "max and mean of weights made late": max_and_mean(Late),
    "max and mean of random features": max_and_mean(Features),
    "distance of random features and none": (
        branches(lambda h, a, b: h + (a - b).abs(), 2, Features),
        branches(plain, 2, Features),
    ),
    "distance of scales and none": (
        branches(lambda h, a, b: h + (a - b).abs(), 2, Scales),
        branches(plain, 2, Scales),
    ),
    "max and mean of layers, one of which reads a copy": (
        reread(torch.maximum),
        reread(lambda a, b: (a + b) / 2),
    ),
}

EQUAL = {
    "max, the other way round": (
        branches(lambda h, a, b: torch.maximum(a, b)),
        branches(lambda h, a, b: torch.maximum(b, a), backwards=True),
    ),
    "max by a distance": (
        branches(MAX),
        branches(lambda h, a, b: (a + b + (a - b).abs()) / 2),
    ),
    "max by a rectifier": (branches(MAX), branches(lambda h, a, b: (a - b).relu() + b)),
    "distance by max and min": (
        branches(lambda h, a, b: h + (a - b).abs()),
        branches(lambda h, a, b: h + torch.maximum(b, a) - torch.minimum(a, b)),
    ),
    "squared distance, expanded": (
        branches(lambda h, a, b: (a - b) ** 2),
        branches(lambda h, a, b: a * a - 2 * a * b + b * b),
    ),
    "difference, whose layers are as good as each other": (
        branches(lambda h, a, b: a - b),
        branches(lambda h, a, b: b - a),
    ),
    "rectified difference, likewise": (
        branches(lambda h, a, b: h + (a - b).relu()),
        branches(lambda h, a, b: h + (b - a).relu()),
    ),
    "sorted by min and max": (
        branches(SORTED, times=2),
        branches(lambda h, a, b: torch.cat([torch.minimum(b, a), torch.maximum(b, a)], 1), times=2),
    ),
    "cosine, the other way round": (
        branches(lambda h, a, b: h * cosine_similarity(a, b)[:, None]),
        branches(lambda h, a, b: h * cosine_similarity(b, a)[:, None], backwards=True),
    ),
    "weighted by softmax, backwards": (
        branches(SOFT_MAX),
        branches(lambda h, *t: SOFT_MAX(h, *reversed(t)), backwards=True),
    ),
    "beside each other, the other way round": (
        branches(BESIDE, times=2),
        branches(lambda h, a, b: torch.cat([b, a], 1), times=2),
    ),
    "product of 3, associated otherwise": (
        branches(lambda h, a, b, c: (a * b) * c, 3),
        branches(lambda h, a, b, c: b * (c * a), 3, backwards=True),
    ),
    "max of 3, associated otherwise": (
        branches(MAX, 3),
        branches(lambda h, a, b, c: torch.maximum(c, torch.maximum(b, a)), 3),
    ),
    "median of 3 by sum, max and min": (
        branches(MEDIAN, 3),
        branches(lambda h, *t: 3 * MEAN(h, *t) - MAX(h, *t) - MIN(h, *t), 3, backwards=True),
    ),
    "weighted sum of 3, renumbered": (
        branches(weighted, 3),
        branches(lambda h, a, b, c: weighted(h, c, a, b), 3),
    ),
    "max of 4 as a tournament": (
        branches(MAX, 4),
        branches(lambda h, a, b, c, d: torch.max(torch.max(a, c), torch.max(d, b)), 4),
    ),
    "lattice of 4, renumbered": (
        branches(lambda h, a, b, c, d: torch.max(torch.min(a, b), torch.min(c, d)), 4),
        branches(lambda h, a, b, c, d: torch.max(torch.min(d, a), torch.min(b, c)), 4),
    ),
    "product of differences, renumbered": (
        branches(lambda h, a, b, c, d: h + (a - b) * (c - d), 4),
        branches(lambda h, a, b, c, d: h + (d - b) * (a - c), 4, backwards=True),
    ),
    "hexagon, renumbered": (around(HEXAGON), around(RENUMBERED)),
    "max of two layers each, backwards": (
        branches(MAX, 2, two_layers),
        branches(lambda h, a, b: torch.maximum(b, a), 2, two_layers, backwards=True),
    ),
    "difference of two layers each, turned": (
        branches(lambda h, a, b: h + (a - b).relu(), 2, two_layers),
        branches(lambda h, a, b: h + (b - a).relu(), 2, two_layers),
    ),
    "max of convolutions, backwards": (
        convolved(MAX),
        convolved(lambda h, a, b: torch.maximum(b, a), backwards=True),
    ),
    "max of means, renumbered": (
        nested(torch.maximum, lambda a, b: (a + b) / 2),
        nested(lambda a, b: torch.maximum(b, a), lambda a, b: (b + a) / 2),
    ),
}


def graph(work, layer="linear") -> automl.Graph:
    """A Graph of standard operations around two equal layers of a hidden value."""
    g = automl.Graph()
    x = g.input("x", (1, 8, 8))
    if layer == "linear":
        h = g.add("linear", g.add("flatten", x), features=WIDTH)
        a, b = (g.add("linear", h, features=WIDTH) for _ in range(2))
    else:
        h = g.add("conv2d", x, channels=4)
        a, b = (g.add("conv2d", h, channels=4) for _ in range(2))
    out = work(g, h, a, b)
    out = out if layer == "linear" else g.add("global_avg_pool2d", out)
    g.output(g.add("linear", out, features=CLASSES))
    return g


def rectified(g, h, a, b):
    return g.add("add", h, g.add("relu", g.add("subtract", a, b)))


def squared(g, h, a, b):
    difference = g.add("subtract", a, b)
    return g.add("add", h, g.add("multiply", difference, difference))


def larger(g, h, a, b):
    return g.add("add", g.add("relu", g.add("subtract", a, b)), b)


GRAPHS = {
    "rectified difference and none": (graph(rectified), graph(lambda g, h, a, b: h)),
    "squared difference and none": (graph(squared), graph(lambda g, h, a, b: h)),
    "max and one of two": (graph(larger), graph(lambda g, h, a, b: b)),
    "max and mean": (
        graph(lambda g, h, a, b: g.add("add", larger(g, h, a, b), larger(g, h, a, b))),
        graph(lambda g, h, a, b: g.add("add", a, b)),
    ),
    "product and square of two and of one": (
        graph(lambda g, h, a, b: g.add("multiply", a, b)),
        graph(lambda g, h, a, b: g.add("multiply", a, a)),
    ),
    "rectified difference of convolutions and none": (
        graph(rectified, "conv2d"),
        graph(lambda g, h, a, b: h, "conv2d"),
    ),
}
EQUAL_GRAPHS = {
    "rectified difference, turned": (
        graph(rectified),
        graph(lambda g, h, a, b: rectified(g, h, b, a)),
    ),
    "squared difference, expanded": (
        graph(squared),
        graph(
            lambda g, h, a, b: g.add(
                "subtract",
                g.add("add", h, g.add("multiply", a, a), g.add("multiply", b, b)),
                g.add("add", g.add("multiply", a, b), g.add("multiply", b, a)),
            )
        ),
    ),
    "max, from either side": (graph(larger), graph(lambda g, h, a, b: larger(g, h, b, a))),
    "max of convolutions, from either side": (
        graph(larger, "conv2d"),
        graph(lambda g, h, a, b: larger(g, h, b, a), "conv2d"),
    ),
}

EQUAL_WEIGHTS = {
    f"max of {name}, the other way round": (
        branches(lambda h, a, b: torch.maximum(a, b), 2, branch),
        branches(lambda h, a, b: torch.maximum(b, a), 2, branch, backwards=True),
    )
    for name, branch in {
        "recurrent layers": Rows,
        "embeddings": Binned,
        "scales": Scales,
        "bilinear layers": Paired,
        "lazy layers": lambda: nn.LazyLinear(WIDTH),
        "random features": Features,
    }.items()
}

PAIRS = [
    *kind("symmetry", {**TWO, **THREE, **FOUR}, {}),
    *kind("symmetry, one level deeper", DEEPER, {}),
    *kind("symmetry of other weights", WEIGHTS, EQUAL_WEIGHTS),
    *kind("symmetry", {}, EQUAL),
    *kind("symmetry in graphs", GRAPHS, EQUAL_GRAPHS),
]
