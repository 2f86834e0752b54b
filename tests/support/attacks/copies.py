"""Weights that start as copies, compared with independent, shared and tied weights."""

import copy

import torch
from torch import nn

from attacks.parts import CLASSES, WIDTH, Build, branches, kind, two_layers


def joined(h, a, b):
    """Different uses, so that copies do not stay equal in training."""
    return a.relu() + b.tanh()


class Two(nn.Module):
    """Two layers of one hidden value; `relate` may derive the second's weights from the first's."""

    def __init__(self, relate=None, layer=lambda: nn.Linear(WIDTH, WIDTH), join=joined) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.a, self.b = layer(), layer()
        self.join = join
        if relate is not None:
            with torch.no_grad():
                self.b = relate(self.a, self.b) or self.b

    def forward(self, x):
        h = self.stem(x.flatten(1)).tanh()
        return self.head(self.join(h, self.a(h), self.b(h)))


def two(*given, **rest) -> Build:
    return lambda: Two(*given, **rest)


def deep(a, b):
    return copy.deepcopy(a)


def loaded(a, b):
    b.load_state_dict(a.state_dict())


def copied(a, b):
    for ours, theirs in zip(a.parameters(), b.parameters(), strict=True):
        theirs.copy_(ours)


def cloned(a, b):
    b.weight = nn.Parameter(a.weight.detach().clone())
    b.bias = nn.Parameter(a.bias.detach().clone())


def weight_only(a, b):
    b.weight.copy_(a.weight)


def scaled(factor):
    def relate(a, b):
        b.weight.copy_(factor * a.weight)
        b.bias.copy_(factor * a.bias)

    return relate


def transposed(a, b):
    b.weight.copy_(a.weight.T)


def shared(a, b):
    return a


def tied(a, b):
    b.weight, b.bias = a.weight, a.bias


def aliased(a, b):
    """Two parameters with the same memory: a step of either changes both."""
    b.weight.data, b.bias.data = a.weight.data, a.bias.data


def zeroed(a, b):
    b.weight.zero_()
    b.bias.zero_()


def frozen(relate):
    def made(a, b):
        b = relate(a, b) or b
        return b.requires_grad_(False)

    return made


def of_one_seed(seeds) -> Build:
    """Two layers whose weights come from their own generators."""

    def layer(seed):
        made = nn.Linear(WIDTH, WIDTH)
        generator = torch.Generator().manual_seed(seed)
        made.weight.data = torch.randn(WIDTH, WIDTH, generator=generator) / 4
        return made

    def build():
        layers = map(layer, seeds)
        return Two(layer=lambda: next(layers))

    return build


def drawn_again(again) -> Build:
    """Two layers drawn from the global generator, which is or is not reset between them."""

    def build():
        state = torch.get_rng_state()

        def layer():
            if again:
                torch.set_rng_state(state)
            return nn.Linear(WIDTH, WIDTH)

        return Two(layer=layer)

    return build


def three(copies) -> Build:
    """A function of three branches, some of which start as copies."""

    def build():
        made = branches(lambda h, a, b, c: torch.maximum(a, b.tanh()) + c.relu(), 3)()
        for number in copies:
            getattr(made, f"branch{number}").load_state_dict(made.branch0.state_dict())
        return made

    return build


DIFFER = {
    "apart and deepcopy": (two(), two(deep)),
    "apart and load_state_dict": (two(), two(loaded)),
    "apart and copy_": (two(), two(copied)),
    "apart and copied weight, bias apart": (two(), two(weight_only)),
    "copies and copied weight, bias apart": (two(copied), two(weight_only)),
    "apart and twice": (two(), two(scaled(2))),
    "copy and twice": (two(copied), two(scaled(2))),
    "apart and negative": (two(), two(scaled(-1))),
    "copy and negative": (two(copied), two(scaled(-1))),
    "apart and transposed": (two(), two(transposed)),
    "copy and transposed": (two(copied), two(transposed)),
    "copy and shared": (two(copied), two(shared)),
    "apart and shared": (two(), two(shared)),
    "apart and tied": (two(), two(tied)),
    "copy and one memory": (two(copied), two(aliased)),
    "one memory and tied": (two(aliased), two(tied)),
    "apart and frozen": (two(), two(frozen(lambda a, b: b))),
    "copy and frozen copy": (two(copied), two(frozen(deep))),
    "apart and zero": (two(), two(zeroed)),
    "frozen copy and frozen apart": (two(frozen(deep)), two(frozen(lambda a, b: b))),
    "copies of two layers and apart": (two(copied, two_layers), two(None, two_layers)),
    "max of copies and of layers apart": (
        two(copied, join=lambda h, a, b: torch.maximum(a, b.tanh())),
        two(join=lambda h, a, b: torch.maximum(a, b.tanh())),
    ),
    "one seed and two seeds": (of_one_seed((1, 1)), of_one_seed((1, 2))),
    "generator set back and not": (drawn_again(True), drawn_again(False)),
    "two of three copied and none": (three((1,)), three(())),
    "two of three copied and all": (three((1,)), three((1, 2))),
    "first and second copied, first and third": (three((1,)), three((2,))),
}
EQUAL = {
    "deepcopy and load_state_dict": (two(deep), two(loaded)),
    "load_state_dict and copy_": (two(loaded), two(copied)),
    "copy_ and cloned parameters": (two(copied), two(cloned)),
    "shared and tied": (two(shared), two(tied)),
    "copies, used the other way round": (
        two(copied),
        two(copied, join=lambda h, a, b: b.relu() + a.tanh()),
    ),
    "apart, used the other way round": (
        two(),
        two(join=lambda h, a, b: b.relu() + a.tanh()),
    ),
    "copies of two layers, by either way": (two(deep, two_layers), two(copied, two_layers)),
}

PAIRS = kind("copies", DIFFER, EQUAL)
