"""Space `tabular_mlp`: what its embeddings compute, and the identity of its networks."""

import math
import random

import optuna
import pytest
import torch
from automl_plugins.trainers.supervised import Supervised
from automl_searchspaces._embeddings import EmbedCategories, EmbedNumbers
from automl_searchspaces.tabular_mlp import tabular_mlp
from toys import blobs

from automl import Candidate, Graph, table_task
from automl.identity.graphs.canonical import canonical
from automl.identity.probes.probe import probe

BLOCKS = ((1, 4), (5, 7))
"""Of seven inputs, columns 0 and 4 are numbers."""


@pytest.fixture(scope="module")
def task():
    draw = random.Random(0)
    rows = [(draw.gauss(0, 1), draw.choice("abc"), draw.choice(["", "1", "2"])) for _ in range(90)]
    table = {
        "x": [f"{x:.3f}" for x, _, _ in rows],
        "kind": [kind for _, kind, _ in rows],
        "n": [n for _, _, n in rows],
        "y": ["yes" if x > 0 else "no" for x, _, _ in rows],
    }
    return table_task("table", table)


# The embeddings.
def test_waves_match_their_closed_form():
    module = EmbedNumbers(7, BLOCKS, frequencies=1, scale=0.5, size=1)
    with torch.no_grad():
        module.frequencies.copy_(torch.tensor([[1.0], [2.0]]))
        module.weight.copy_(torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]]))
        module.bias.copy_(torch.tensor([[0.25], [0.0]]))
    x = torch.zeros(2, 7)
    x[:, 0] = torch.tensor([0.2, 1.0])
    x[:, 4] = torch.tensor([0.1, 0.75])
    x[:, 1:4] = 9.0
    # relu(cos(2π·0.5·1·x₀) + 0.25) and relu(sin(2π·0.5·2·x₄)).
    expected = torch.tensor(
        [
            [math.cos(math.pi * 0.2) + 0.25, math.sin(math.pi * 0.2)],
            [0.0, 0.0],
        ]
    )
    assert torch.allclose(module(x), expected, atol=1e-6)


def test_gradients_match_finite_differences():
    module = EmbedNumbers(7, BLOCKS, frequencies=3, scale=0.7, size=2).double()
    torch.manual_seed(0)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,))


def test_categories_come_after_the_numbers():
    module = EmbedCategories(7, BLOCKS, size=2)
    x = torch.eye(7)
    out = module(x)
    assert out.shape == (7, 2 + 2 + 2)
    assert torch.equal(out[:, :2], x[:, [0, 4]])
    assert torch.equal(out[2, 2:4], module.tables[0].weight[:, 1])
    assert torch.equal(out[6, 4:], module.tables[1].weight[:, 1])
    assert not out[0, 2:].any()


# The space.
@pytest.mark.parametrize("seed", range(5))
def test_a_proposal_trains(task, seed):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    candidate = tabular_mlp(study.ask(), task)
    torch.manual_seed(seed)
    module = candidate.build(task.probe()[0], task.signature)
    inputs, targets = task.probe()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(task.loss(module(inputs), targets))
        losses[-1].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert losses[-1] < losses[0]


def test_without_embeddings_numbers_are_used_directly(task):
    plain = tabular_mlp(optuna.create_study().ask(), task, frequencies=0)
    assert "number_scale" not in _drawn(task, frequencies=0)
    assert "number_scale" in _drawn(task)
    assert "embed_numbers" not in str(plain.architecture.to_json())


def _drawn(task, **options):
    trial = optuna.create_study().ask()
    tabular_mlp(trial, task, **options)
    return trial.params


# Its identity.
def embedded(scale: float, order: bool = False) -> Candidate:
    graph = Graph()
    x = graph.input("x", (7,))
    parts = [
        lambda: graph.add("embed_categories", x, blocks=BLOCKS, size=2),
        lambda: graph.add("embed_numbers", x, blocks=BLOCKS, frequencies=4, scale=scale, size=3),
    ]
    made = {i: parts[i]() for i in ((1, 0) if order else (0, 1))}
    graph.output(graph.add("linear", graph.add("concat", made[0], made[1]), features=3))
    return Candidate(graph)


def test_only_equal_networks_share_a_canonical_form():
    def form(*given, **rest):
        return canonical(embedded(*given, **rest).architecture).key

    assert form(1.0) == form(1.0, order=True)
    assert form(1.0) != form(1.1)


def test_a_probe_sees_the_scale():
    """Probes draw their own weights, so the scale must affect the forward pass itself."""
    task = blobs(features=7)

    def digests(scale):
        found = probe(lambda: embedded(scale), task, Supervised())
        assert found.sketch is not None
        return set(found.sketch.digests(""))

    assert digests(1.0) & digests(1.0)
    assert not digests(1.0) & digests(1.1)
