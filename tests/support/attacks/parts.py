"""Building blocks of attacks: small modules as functions of their layers, and pairs of modules.

Every module takes images of digits, [n, 1, 8, 8], and returns logits, [n, 10]. This file imports
only torch and automl, because the probing process loads it too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import automl

PIXELS, WIDTH, CLASSES = 64, 16, 10

Build = Callable[[], nn.Module] | automl.Graph
Layer = Callable[[], Any]


@dataclass(frozen=True)
class Pair:
    """Two candidates that are equal or different functions by construction."""

    kind: str
    name: str
    one: Build
    other: Build
    equal: bool

    @property
    def sides(self) -> dict[str, Build]:
        """The candidates by their names in the space of attacks."""
        return {f"{self.kind}: {self.name}: {n}": b for n, b in enumerate((self.one, self.other))}


Named = dict[str, tuple[Build, Build]]
"""Pairs by description."""


def kind(name: str, differ: Named, equal: Named) -> list[Pair]:
    """The pairs of one kind, from descriptions of different and of equal functions."""
    named = [(differ, False), (equal, True)]
    return [
        Pair(name, about, *two, same) for of_kind, same in named for about, two in of_kind.items()
    ]


class Composed(nn.Module):
    """Named layers made in the given order, and a function of them and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **layers: Layer) -> None:
        super().__init__()
        for name, make in layers.items():
            setattr(self, name, make())
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def of(function: Callable[[Any, Tensor], Tensor], **layers: Layer) -> Build:
    """A module from a function of its layers and of images as vectors."""
    return lambda: Composed(lambda m, x: function(m, x.flatten(1)), **layers)


def of_images(function: Callable[[Any, Tensor], Tensor], **layers: Layer) -> Build:
    """A module from a function of its layers and of images."""
    return lambda: Composed(function, **layers)


def lin(inner: int = WIDTH, outer: int = WIDTH, bias: bool = True) -> Layer:
    return lambda: nn.Linear(inner, outer, bias=bias)


def conv(inner: int = 1, outer: int = 4, kernel: int = 3, **rest: Any) -> Layer:
    return lambda: nn.Conv2d(inner, outer, kernel, padding=kernel // 2, **rest)


STEM = {"stem": lin(PIXELS)}
HEAD = {"head": lin(WIDTH, CLASSES)}


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


def branches(
    join: Callable[..., Tensor],
    count: int = 2,
    branch: Layer | None = None,
    times: int = 1,
    backwards: bool = False,
) -> Build:
    """Equal branches of one hidden layer `h`; the head reads `join(h, a, b, …)`.

    Args:
        join: Combines the hidden layer and the branches.
        count: The number of branches.
        branch: Makes a branch.
        times: The width of the combined result, in widths of a branch.
        backwards: Whether the branches are made in reverse order.
    """
    names = [f"branch{number}" for number in range(count)]
    made = {name: branch or lin() for name in (reversed(names) if backwards else names)}

    def function(m: Any, x: Tensor) -> Tensor:
        h = m.stem(x).tanh()
        return m.head(join(h, *(getattr(m, name)(h) for name in names)))

    return of(function, **STEM, **made, head=lin(WIDTH * times, CLASSES))


def all_of(join: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Adapt a function of branches stacked as [branches, n, width], ignoring the hidden layer."""
    return lambda h, *found: join(torch.stack(found))


def hidden(work: Callable[[Any, Tensor], Tensor], **layers: Layer) -> Build:
    """A hidden layer, some work on it, and a head; the work may have its own layers."""
    return of(lambda m, x: m.head(work(m, m.stem(x))), **STEM, **layers, **HEAD)
