"""Modules that keep state between calls."""

import copy

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from attacks.parts import CLASSES, WIDTH, Build, hidden, kind, lin


def with_layer(make) -> Build:
    return hidden(lambda m, h: m.layer(h).tanh(), layer=make)


def sequence(make) -> Build:
    """The same as an `nn.Sequential`."""
    return lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, WIDTH), make(), nn.Tanh(), nn.Linear(WIDTH, CLASSES)
    )


def spectral(steps=1):
    return lambda: spectral_norm(nn.Linear(WIDTH, WIDTH), n_power_iterations=steps)


def old_spectral():
    return nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))


def normed():
    return weight_norm(nn.Linear(WIDTH, WIDTH))


class Codebook(nn.Module):
    """Vector quantization whose codes follow a moving average; gradients pass straight through."""

    def __init__(self, decay=0.9) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(8, WIDTH) / 4)
        self.decay = decay

    def forward(self, h):
        near = torch.cdist(h.detach(), self.codes).argmin(1)
        if self.training:
            hot = nn.functional.one_hot(near, len(self.codes)).to(h.dtype)
            sums, counts = hot.T @ h.detach(), hot.sum(0)[:, None]
            means = torch.where(counts > 0, sums / counts.clamp(min=1), self.codes)
            self.codes.lerp_(means, 1 - self.decay)
        return h + (self.codes[near] - h).detach()


class Teacher(nn.Module):
    """A layer whose outputs include those of a moving average of its weights."""

    def __init__(self, decay=0.9) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.mean = copy.deepcopy(self.layer).requires_grad_(False)
        self.decay = decay

    def forward(self, h):
        if self.training:
            for ours, theirs in zip(self.mean.parameters(), self.layer.parameters(), strict=True):
                ours.data.lerp_(theirs.data, 1 - self.decay)
        return self.layer(h) + 0.5 * self.mean(h)


class Counting(nn.Module):
    """Counts its calls in a Python attribute and scales by a function of the count."""

    def __init__(self, scale) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.scale, self.calls = scale, 0

    def forward(self, h):
        self.calls += self.training
        return self.layer(h) * self.scale(self.calls)


def counting(scale):
    return lambda: Counting(scale)


class Remembering(nn.Module):
    """Adds a share of the mean of the last batch, which it keeps in a list."""

    def __init__(self, share=0.1) -> None:
        super().__init__()
        self.layer, self.last, self.share = nn.Linear(WIDTH, WIDTH), [], share

    def forward(self, h):
        found = self.layer(h)
        if self.training and self.last:
            found = found + self.share * self.last[-1]
        if self.training:
            self.last = [found.detach().mean(0)]
        return found


class Noisy(nn.Module):
    """Adds noise from its own generator in training."""

    def __init__(self, seed=0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, h):
        if not self.training:
            return h
        return h + 0.1 * torch.randn(h.shape, generator=self.generator, dtype=h.dtype)


COUNT = {"count": 0}


class Global(nn.Linear):
    """Counts the calls of all instances and does not use the count."""

    def forward(self, h):
        COUNT["count"] += 1
        return super().forward(h)


def norm(**options) -> Build:
    return hidden(lambda m, h: m.norm(h), norm=lambda: nn.BatchNorm1d(WIDTH, **options))


def counted(after) -> Build:
    """Doubles the output once a normalization has counted enough batches."""

    def work(m, h):
        found = m.norm(h)
        return 2 * found if m.norm.num_batches_tracked > after else found

    return hidden(work, norm=lambda: nn.BatchNorm1d(WIDTH))


def annealed(steps):
    """A gate that opens over a number of calls."""
    return lambda calls: min(1.0, (1 + calls) / steps)


def late(after, factor=2):
    return lambda calls: factor if calls > after else 1


def again(build) -> tuple[Build, Build]:
    """The same candidate twice: whatever its first probe leaves behind must not count."""
    return build, build


DIFFER = {
    "spectral norm and none": (with_layer(spectral()), with_layer(lin())),
    "spectral norm, 1 and 3 steps": (with_layer(spectral()), with_layer(spectral(3))),
    "weight norm and none": (with_layer(normed), with_layer(lin())),
    "codes by averages of .9 and .99": (
        with_layer(lambda: Codebook(0.9)),
        with_layer(lambda: Codebook(0.99)),
    ),
    "a teacher of .9 and .99": (
        with_layer(lambda: Teacher(0.9)),
        with_layer(lambda: Teacher(0.99)),
    ),
    "a gate that opens over 20 and 40 calls": (
        with_layer(counting(annealed(20))),
        with_layer(counting(annealed(40))),
    ),
    "doubled from the 50th call on and never": (
        with_layer(counting(late(50))),
        with_layer(counting(late(50, 1))),
    ),
    "doubled from the 50th call on and from the 90th": (
        with_layer(counting(late(50))),
        with_layer(counting(late(90))),
    ),
    "doubled after 50 batches that a norm counted and never": (counted(50), counted(10**9)),
    "the last batch remembered and not": (
        with_layer(Remembering),
        with_layer(lambda: Remembering(0.0)),
    ),
    "noise of its own and none": (with_layer(Noisy), hidden(lambda m, h: h.tanh())),
    "noise of two generators": (with_layer(Noisy), with_layer(lambda: Noisy(1))),
    "running means of .1 and .01": (norm(), norm(momentum=0.01)),
    "running means and none": (norm(), norm(track_running_stats=False)),
}
EQUAL = {
    "spectral norm again": again(with_layer(spectral())),
    "spectral norm in a sequence": (with_layer(spectral()), sequence(spectral())),
    "torch's old spectral norm again": again(with_layer(old_spectral)),
    "weight norm again": again(with_layer(normed)),
    "weight norm in a sequence": (with_layer(normed), sequence(normed)),
    "codes again": again(with_layer(Codebook)),
    "codes in a sequence": (with_layer(Codebook), sequence(Codebook)),
    "a teacher again": again(with_layer(Teacher)),
    "calls counted and calls not": (with_layer(counting(lambda calls: 1)), with_layer(lin())),
    "a gate that opens, again": again(with_layer(counting(annealed(20)))),
    "a gate that opens, in a sequence": (
        with_layer(counting(annealed(20))),
        sequence(counting(annealed(20))),
    ),
    "doubled late, again": again(with_layer(counting(late(50)))),
    "the last batch remembered, again": again(with_layer(Remembering)),
    "noise of its own, again": again(with_layer(Noisy)),
    "noise of its own, in a sequence": (with_layer(Noisy), sequence(Noisy)),
    "calls counted for all, again": again(with_layer(lambda: Global(WIDTH, WIDTH))),
}

PAIRS = kind("state", DIFFER, EQUAL)
