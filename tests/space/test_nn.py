"""Layers that hold open decisions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from automl import Open, OpenDecisionError
from automl.nn import Choice, Dropout, centre, open_in, open_layers

RATE = Open("rate", FloatDistribution(0.1, 0.5))
PICK = Open("pick", CategoricalDistribution(["a", "b"]))


def test_dropout_does_nothing_in_evaluation():
    x = torch.ones(4, 8)
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_dropout_keeps_the_mean_in_training():
    torch.manual_seed(0)
    y = Dropout(0.25)(torch.ones(200, 200))
    assert y.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_refuses_a_rate_outside_its_range(rate):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(rate)


def test_dropout_refuses_an_open_rate_that_may_reach_one():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(Open("rate", FloatDistribution(0, 1)))


def test_dropout_takes_a_rate_for_each_example():
    torch.manual_seed(0)
    layer = Dropout(RATE)
    layer.assign("rate", torch.tensor([0.0, 0.9]))
    kept, dropped = layer(torch.ones(2, 10, 200))
    assert torch.equal(kept, torch.ones(10, 200))
    assert (dropped != 0).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert dropped.max().item() == pytest.approx(10)


def test_dropout_takes_a_scalar_tensor():
    torch.manual_seed(0)
    layer = Dropout(RATE)
    layer.assign("rate", torch.tensor(0.5))
    assert layer(torch.ones(100, 100)).mean().item() == pytest.approx(1, abs=0.05)


def test_an_open_layer_starts_at_the_middle_of_its_decision():
    assert Dropout(RATE).p == pytest.approx(0.3)
    assert "Open('rate'" in repr(Dropout(RATE))


def test_assigning_an_unknown_decision_lists_the_known_ones():
    with pytest.raises(OpenDecisionError, match="no open decision 'other'; it holds: rate"):
        Dropout(RATE).assign("other", 0.1)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_the_centre_is_geometric_if_the_decision_is_logarithmic(a, b):
    low, high = sorted((a, b))
    middle = centre(FloatDistribution(low, high, log=True))
    assert middle**2 == pytest.approx(low * high)
    assert centre(FloatDistribution(low, high)) == pytest.approx((low + high) / 2)


def test_integers_have_a_centre_and_categories_have_none():
    assert centre(IntDistribution(2, 8)) == 5
    with pytest.raises(OpenDecisionError, match="categorical"):
        centre(PICK.distribution)


def test_a_choice_starts_as_the_mean_of_its_options():
    x = torch.randn(5, 3)
    mixed = Choice(PICK, [nn.Identity(), nn.ReLU()])(x)
    torch.testing.assert_close(mixed, (x + x.relu()) / 2)


def test_a_choice_mixes_by_its_weights_and_passes_their_gradient():
    x = torch.randn(5, 3)
    choice = Choice(PICK, [nn.Identity(), nn.Tanh()])
    weights = torch.tensor([0.2, 0.8], requires_grad=True)
    choice.assign("pick", weights)
    output = choice(x)
    torch.testing.assert_close(output, 0.2 * x + 0.8 * x.tanh())
    output.sum().backward()
    torch.testing.assert_close(weights.grad, torch.stack([x.sum(), x.tanh().sum()]))


def test_a_choice_with_a_one_hot_weight_is_that_option():
    x = torch.randn(5, 3)
    choice = Choice(PICK, [nn.Identity(), nn.Tanh()])
    choice.assign("pick", torch.tensor([0.0, 1.0]))
    assert torch.equal(choice(x), x.tanh())


def test_a_choice_needs_a_module_for_each_of_its_options():
    with pytest.raises(OpenDecisionError, match="'pick' needs one module"):
        Choice(PICK, [nn.Identity()])
    with pytest.raises(OpenDecisionError, match="'rate' needs one module"):
        Choice(RATE, [nn.Identity()])


def test_open_layers_are_found_by_decision():
    model = nn.Sequential(Dropout(RATE), nn.Linear(2, 2), Dropout(RATE), Dropout(0.1))
    assert open_layers(model) == {"rate": [model[0], model[2]]}
    assert open_in(model)["rate"] is RATE
