"""Noise, cutout and blending: in training only, nothing at strength 0, open strengths."""

import math

import pytest
import torch
from optuna.distributions import FloatDistribution

from automl import Graph, GraphError, Open, Scope
from automl.nn import Blend, Cutout, GaussianNoise, assigned, open_layers
from automl.space.candidate import Candidate
from automl.space.declared import operation as declared

LAYERS = {"gaussian_noise": GaussianNoise, "cutout": Cutout, "blend": Blend}
ATTRIBUTES = {"gaussian_noise": "std", "cutout": "share", "blend": "share"}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def images(batch=6, side=8):
    return 1 + torch.rand(batch, 2, side, side)


def network(operation, strength):
    graph = Graph()
    x = graph.input("x", (2, 8, 8))
    graph.output(graph.add(operation, x, **{ATTRIBUTES[operation]: strength}))
    return graph


def opened(low=0.0, high=0.9):
    return Open("strength", FloatDistribution(low, high))


@pytest.mark.parametrize("layer", LAYERS.values())
def test_it_does_nothing_in_evaluation(layer):
    x = images()
    assert layer(0.5).eval()(x) is x


@pytest.mark.parametrize("operation", LAYERS)
def test_it_does_nothing_at_zero_and_is_the_identity(operation):
    x, graph = images(), network(operation, 0.0)
    state = torch.get_rng_state()
    assert graph.build().train()(x) is x
    assert torch.equal(torch.get_rng_state(), state)
    plain = Graph()
    plain.output(plain.add("identity", plain.input("x", (2, 8, 8))))
    node = graph.node(graph.output_node)
    algebra = declared(operation).algebra_of([(2, 8, 8)], node.attributes)
    assert algebra.coefficients == (1,)
    assert not algebra.stochastic


@pytest.mark.parametrize("operation", LAYERS)
def test_two_instances_draw_differently(operation):
    x, graph = images(), network(operation, 0.5)
    module = graph.build().train()
    assert not torch.equal(module(x), module(x))
    assert declared(operation).algebra_of([(2, 8, 8)], {ATTRIBUTES[operation]: 0.5}).stochastic


def test_noise_has_its_standard_deviation():
    added = GaussianNoise(0.3)(torch.zeros(100, 1000))
    assert added.std().item() == pytest.approx(0.3, rel=0.02)
    assert added.mean().item() == pytest.approx(0, abs=0.01)


def test_the_gradient_of_noise_with_respect_to_its_strength_is_the_noise():
    layer, std = GaussianNoise(opened()), torch.tensor(0.3, requires_grad=True)
    with assigned(layer, {"strength": std}):
        output = layer(torch.zeros(4, 5))
    (gradient,) = torch.autograd.grad(output.sum(), std)
    torch.testing.assert_close(gradient, output.sum() / 0.3)


def test_cutout_clears_one_rectangle_of_all_channels():
    x = images(batch=200)
    cut = Cutout(0.5)(x) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    for each in cut[:, 0]:
        rows, columns = each.any(1).nonzero(), each.any(0).nonzero()
        assert each.sum() == len(rows) * len(columns)
        assert 1 <= len(rows) <= 4
        assert rows.max() - rows.min() == len(rows) - 1
    # The centre is anywhere, so that the rectangle reaches each pixel, and the border less often.
    reached = cut[:, 0].float().mean(0)
    assert (reached > 0).all()
    assert reached[4, 4] > reached[0, 0]
    assert cut[:, 0].sum((1, 2)).max() == 16


def test_blending_moves_each_example_towards_another_one_of_the_batch():
    x = torch.eye(5)
    blended = Blend(0.25)(x)
    assert blended.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert blended.sum(0).tolist() == pytest.approx([1.0] * 5)
    assert set(blended.flatten().tolist()) <= {0.0, 0.25, 0.75, 1.0}


def test_the_gradient_of_blending_is_the_difference_of_the_examples():
    layer, share = Blend(opened()), torch.tensor(0.25, requires_grad=True)
    x = torch.rand(6, 3)
    with assigned(layer, {"strength": share}):
        output = layer(x)
    weights = torch.rand(6, 3)
    (gradient,) = torch.autograd.grad((weights * output).sum(), share)
    torch.testing.assert_close(gradient, (weights * (output - x)).sum() / 0.25)


@pytest.mark.parametrize("layer", LAYERS.values())
def test_each_example_may_have_its_own_strength(layer):
    module, x = layer(opened()), images(batch=3)
    with assigned(module, {"strength": torch.tensor([0.0, 0.9, 0.0])}):
        y = module(x)
        while torch.equal(y, x):  # an example may be blended with itself
            y = module(x)
    assert [torch.equal(a, b) for a, b in zip(x, y, strict=True)] == [True, False, True]


@pytest.mark.parametrize("operation", LAYERS)
def test_an_open_strength_goes_through_a_graph(operation):
    graph = network(operation, opened())
    again = Graph.from_json(graph.to_json())
    for each in (graph, again):
        module = Candidate(each).build().train()
        assert list(open_layers(module)) == ["strength"]
        x = images()
        with assigned(module, {"strength": 0.0}):
            assert module(x) is x
    (name, use), *_ = graph.uses()
    assert (name, use.owner, use.attribute) == ("strength", operation, ATTRIBUTES[operation])
    assert use.scope is Scope.SAMPLE
    assert use.differentiable is (operation != "cutout")


@pytest.mark.parametrize("operation", LAYERS)
@pytest.mark.parametrize("strength", [-0.1, math.nan, math.inf, "much"])
def test_a_strength_out_of_range_is_refused(operation, strength):
    with pytest.raises(GraphError, match=operation):
        network(operation, strength)


@pytest.mark.parametrize("operation", ["cutout", "blend"])
def test_a_share_cannot_exceed_one(operation):
    with pytest.raises(GraphError, match=r"its share must be in \[0, 1\]"):
        network(operation, 1.1)
    with pytest.raises(GraphError, match=r"its share must be in \[0, 1\]"):
        network(operation, opened(high=1.1))


def test_cutout_needs_images():
    graph = Graph()
    with pytest.raises(GraphError, match="it needs images"):
        graph.add("cutout", graph.input("x", (4,)), share=0.5)


def test_a_layer_shows_its_strength():
    assert "std=0.5" in repr(GaussianNoise(0.5))
    assert "Open('strength'" in repr(Blend(opened()))


@pytest.mark.parametrize("layer", LAYERS.values())
def test_it_works_under_torch_func(layer):
    module, x = layer(0.5), images(batch=4)

    def loss(scale):
        return (module(scale * x)).sum()

    gradient = torch.func.grad(loss)(torch.tensor(1.0))
    assert gradient.isfinite()
    many = torch.func.vmap(lambda scale: module(scale * x), randomness="different")
    assert many(torch.ones(3)).shape == (3, *x.shape)
