"""Events so rare that a probe of a few steps does not see them."""

import os
import random
import time

import numpy as np
import torch
from torch import nn
from torch.nn.functional import dropout

from attacks.parts import Build, hidden, kind, lin

LAYER = {"layer": lin()}


def residual(kept) -> Build:
    """A residual layer that a draw keeps or drops in training; `kept(h)` is a factor."""

    def work(m, h):
        added = m.layer(h).tanh()
        return h + (added * kept(h) if m.training else added)

    return hidden(work, **LAYER)


def left_out(draw) -> Build:
    """A residual layer that does not even run if a draw drops it."""

    def work(m, h):
        if m.training and draw():
            return 3 * h.detach()
        return h + m.layer(h).tanh()

    return hidden(work, **LAYER)


def own(rate, late=False) -> Build:
    """The same with draws from the module's own generator."""

    def build():
        made = hidden(work, **LAYER)()
        made.generator = None if late else torch.Generator().manual_seed(3)
        return made

    def work(m, h):
        if m.generator is None:
            m.generator = torch.Generator().manual_seed(3)
        if m.training and torch.rand((), generator=m.generator) < rate:
            return 3 * h.detach()
        return h + m.layer(h).tanh()

    return build


def chosen(weights) -> Build:
    """One of two activations, chosen by a draw for each batch."""

    def work(m, h):
        number = int(torch.multinomial(torch.tensor(weights), 1)) if m.training else 0
        return (h.tanh() if number == 0 else h.cos()) + 0 * m.layer(h)

    return hidden(work, **LAYER)


def dropped(rate) -> Build:
    return hidden(lambda m, h: m.drop(h), drop=lambda: nn.Dropout(rate))


def few_dropped(rate) -> Build:
    """Dropout of one number per example."""
    return hidden(lambda m, h: torch.cat([dropout(h[:, :1], rate, m.training), h[:, 1:]], 1).tanh())


def paths(keep) -> Build:
    """Stochastic depth as it is often written: the floor of a draw plus the rate to keep."""

    def kept(h):
        return torch.floor(keep + torch.rand(len(h), 1)) / keep

    return residual(kept)


def masked(rate) -> Build:
    return residual(lambda h: torch.where(torch.rand(len(h), 1) < rate, 0.0, 1.0))


NEVER = left_out(lambda: False)
DIFFER = {
    "a layer left out for .01 of batches and never": (
        left_out(lambda: torch.rand(()) < 0.01),
        NEVER,
    ),
    "a layer left out for .01 and .05 of batches": (
        left_out(lambda: torch.rand(()) < 0.01),
        left_out(lambda: torch.rand(()) < 0.05),
    ),
    "a layer left out for .05 of batches and never": (
        left_out(lambda: float(torch.rand(1)) < 0.05),
        NEVER,
    ),
    "by bernoulli": (left_out(lambda: torch.bernoulli(torch.tensor(0.02)).bool()), NEVER),
    "by bernoulli_": (left_out(lambda: torch.empty(()).bernoulli_(0.02).bool()), NEVER),
    "by uniform_": (left_out(lambda: torch.empty(1).uniform_() < 0.02), NEVER),
    "by a normal draw": (left_out(lambda: torch.randn(()) > 2.2), NEVER),
    "by a whole number": (left_out(lambda: torch.randint(0, 50, ()) == 0), NEVER),
    "by a permutation": (left_out(lambda: torch.randperm(50)[0] == 0), NEVER),
    "by an exponential draw": (left_out(lambda: torch.empty(()).exponential_() > 4), NEVER),
    "by random": (left_out(lambda: random.random() < 0.02), NEVER),
    "by numpy": (left_out(lambda: np.random.rand() < 0.02), NEVER),
    "by a new generator of numpy": (
        left_out(lambda: np.random.default_rng().random() < 0.02),
        NEVER,
    ),
    "by a distribution": (
        left_out(lambda: torch.distributions.Bernoulli(0.02).sample() > 0),
        NEVER,
    ),
    "by the system's randomness": (left_out(lambda: os.urandom(1)[0] < 6), NEVER),
    "by the clock": (left_out(lambda: time.time_ns() // 1000 % 50 == 0), NEVER),
    "by torch's seed": (left_out(lambda: torch.initial_seed() % 50 < 25), NEVER),
    "by a generator of its own": (own(0.02), own(0.0)),
    "by a generator of its own, made late": (own(0.02, late=True), own(0.0, late=True)),
    "two draws of a generator of its own": (own(0.02), own(0.05)),
    "one of two activations, .02 and never": (chosen([0.98, 0.02]), chosen([1.0, 0.0])),
    "one of two activations, .02 and .05": (chosen([0.98, 0.02]), chosen([0.95, 0.05])),
    "dropout of 0 and .01": (dropped(0.0), dropped(0.01)),
    "dropout of .01 and .05": (dropped(0.01), dropped(0.05)),
    "dropout of one number, 0 and .01": (few_dropped(0.0), few_dropped(0.01)),
    "dropout of one number, .01 and .02": (few_dropped(0.01), few_dropped(0.02)),
    "paths dropped, .01 and never": (paths(0.99), residual(lambda h: 1.0)),
    "paths dropped, .01 and .02": (paths(0.99), paths(0.98)),
    "masked by where, .01 and never": (masked(0.01), residual(lambda h: 1.0)),
    "masked by where, .01 and .02": (masked(0.01), masked(0.02)),
}
EQUAL = {
    "dropout of .3, by a layer and by a function": (
        dropped(0.3),
        hidden(lambda m, h: dropout(h, 0.3, m.training)),
    ),
    "dropout of 0 and none": (dropped(0.0), hidden(lambda m, h: h)),
    "a draw compared from either side": (
        left_out(lambda: torch.rand(()) < 0.05),
        left_out(lambda: torch.rand(()) < 0.05),
    ),
    "a draw that never counts and none": (
        residual(lambda h: 1.0),
        residual(lambda h: torch.ones(len(h), 1)),
    ),
    "one generator of its own in two writings": (own(0.3), own(0.3)),
}

PAIRS = kind("draws", DIFFER, EQUAL)
