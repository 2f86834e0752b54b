"""Ensembles, mixtures of experts and attention, with members that differ or are copies."""

import copy

import torch
from torch import nn

from attacks.parts import CLASSES, WIDTH, Build, kind, lin, of


def member() -> nn.Module:
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def ensemble(join, count=2, backwards=False) -> Build:
    """Members with one architecture and one input; `join` combines their logits."""
    names = [f"member{number}" for number in range(count)]
    made = dict.fromkeys(reversed(names) if backwards else names, member)
    return of(lambda m, x: join(torch.stack([getattr(m, name)(x) for name in names])), **made)


def in_logits(t):
    return t.mean(0)


def in_probabilities(t):
    return t.softmax(2).mean(0).log()


def in_log_probabilities(t):
    return t.log_softmax(2).mean(0)


class Voting(nn.Module):
    """Trains on mean logits; in evaluation mode, its members vote or return mean logits too."""

    def __init__(self, votes: bool) -> None:
        super().__init__()
        self.members = nn.ModuleList(member() for _ in range(3))
        self.votes = votes

    def forward(self, x):
        t = torch.stack([each(x.flatten(1)) for each in self.members])
        if self.training or not self.votes:
            return t.mean(0)
        return nn.functional.one_hot(t.argmax(2), CLASSES).to(t.dtype).mean(0)


class Experts(nn.Module):
    """Experts with one gate each, and a function that combines gates and experts."""

    def __init__(self, join, count=2, copied=False, order=None) -> None:
        super().__init__()
        self.stem = nn.Linear(64, WIDTH)
        self.gates = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(count))
        experts = [nn.Linear(WIDTH, WIDTH) for _ in range(count)]
        if copied:
            experts = [experts[0], *(copy.deepcopy(experts[0]) for _ in experts[1:])]
        self.experts = nn.ModuleList(experts)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.join, self.order = join, order or range(count)

    def forward(self, x):
        h = self.stem(x.flatten(1)).tanh()
        gates = torch.cat([self.gates[n](h) for n in self.order], 1)
        found = torch.stack([self.experts[n](h) for n in self.order], 1)
        return self.head(self.join(gates, found))


def softly(gates, found):
    return (gates.softmax(1)[:, :, None] * found).sum(1)


def evenly(gates, found):
    return found.mean(1) + 0 * gates.sum(1, keepdim=True)


def best(gates, found):
    """The best expert, scaled by its gate so that the gate learns."""
    weight, number = gates.softmax(1).max(1)
    rows = torch.arange(len(found))
    return weight[:, None] * found[rows, number]


def best_scaled_all(gates, found):
    """All experts, scaled by the largest gate."""
    return gates.softmax(1).amax(1, keepdim=True) * found.mean(1)


def experts(*given, **rest) -> Build:
    return lambda: Experts(*given, **rest)


def attention(join, backwards=False) -> Build:
    """Two attention maps over the rows of an image, each with its own queries and keys."""
    names = ("query1", "key1", "query2", "key2")
    made = {name: lin(8, 8) for name in (reversed(names) if backwards else names)}

    def function(m, x):
        rows = x.reshape(-1, 8, 8)
        maps = [
            (getattr(m, f"query{n}")(rows) @ getattr(m, f"key{n}")(rows).mT).softmax(2)
            for n in (1, 2)
        ]
        return m.head((join(*maps) @ m.value(rows)).flatten(1))

    return of(function, **made, value=lin(8, 8), head=lin(64, CLASSES))


DIFFER = {
    "2 in logits and in probabilities": (ensemble(in_logits), ensemble(in_probabilities)),
    "3 in logits and in probabilities": (ensemble(in_logits, 3), ensemble(in_probabilities, 3)),
    "2 in log probabilities and in probabilities": (
        ensemble(in_log_probabilities),
        ensemble(in_probabilities),
    ),
    "3 of the largest and of mean logits": (
        ensemble(lambda t: t.amax(0), 3),
        ensemble(in_logits, 3),
    ),
    "3 that vote in evaluation mode": (lambda: Voting(True), lambda: Voting(False)),
    "experts, gated softly and evenly": (experts(softly), experts(evenly)),
    "experts, gated softly, and copies": (experts(softly), experts(softly, copied=True)),
    "experts, the best and copies": (experts(best), experts(best, copied=True)),
    "experts, the best and softly": (experts(best), experts(softly)),
    "experts, the best and all of its weight": (experts(best), experts(best_scaled_all)),
    "4 experts, gated softly and evenly": (experts(softly, 4), experts(evenly, 4)),
    "attention, two maps and one": (
        attention(lambda a, b: a - 0.5 * b),
        attention(lambda a, b: 0.5 * a),
    ),
    "attention, mean and product of maps": (
        attention(lambda a, b: (a + b) / 2),
        attention(lambda a, b: (a * b + 1e-12).sqrt()),
    ),
    "attention, difference and its size": (
        attention(lambda a, b: a - b),
        attention(lambda a, b: (a - b).abs()),
    ),
}
EQUAL = {
    "3 in probabilities, backwards": (
        ensemble(in_probabilities, 3),
        ensemble(lambda t: in_probabilities(t.flip(0)), 3, backwards=True),
    ),
    "2 in probabilities by logsumexp": (
        ensemble(lambda t: t.softmax(2).mean(0).log()),
        ensemble(lambda t: t.log_softmax(2).logsumexp(0) - torch.tensor(2.0).log()),
    ),
    "experts, gated softly, renumbered": (experts(softly, 3), experts(softly, 3, order=(2, 0, 1))),
    "experts, the best, renumbered": (experts(best, 3), experts(best, 3, order=(1, 2, 0))),
    "copied experts, renumbered": (
        experts(softly, copied=True),
        experts(softly, copied=True, order=(1, 0)),
    ),
    "attention, mean of maps, backwards": (
        attention(lambda a, b: (a + b) / 2),
        attention(lambda a, b: (b + a) / 2, backwards=True),
    ),
    "attention, difference turned": (
        attention(lambda a, b: (a - b).abs()),
        attention(lambda a, b: (b - a).abs()),
    ),
}

PAIRS = kind("ensembles, experts, attention", DIFFER, EQUAL)
