"""Layers that hold open decisions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import nn

from automl import Graph, Open, OpenDecisionError
from automl.nn import Blend, Choice, Cutout, Dropout, assigned, centre, open_in, open_layers

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
    with assigned(layer, {"rate": torch.tensor([0.0, 0.9])}):
        kept, dropped = layer(torch.ones(2, 10, 200))
    assert torch.equal(kept, torch.ones(10, 200))
    assert (dropped != 0).float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert dropped.max().item() == pytest.approx(10)


def test_dropout_takes_a_scalar_tensor():
    torch.manual_seed(0)
    layer = Dropout(RATE)
    with assigned(layer, {"rate": torch.tensor(0.5)}):
        assert layer(torch.ones(100, 100)).mean().item() == pytest.approx(1, abs=0.05)


def test_dropout_refuses_a_rate_with_a_gradient():
    layer, rate = Dropout(RATE), torch.tensor(0.5, requires_grad=True)
    with pytest.raises(OpenDecisionError, match="detach"), assigned(layer, {"rate": rate}):
        layer(torch.ones(2, 2))
    with assigned(layer, {"rate": rate.detach()}):
        layer(torch.ones(2, 2))

    def dropped(rate):
        with assigned(layer, {"rate": rate}):
            return layer(torch.ones(2, 2)).sum()

    for transform in (torch.func.grad(dropped), lambda r: torch.func.jvp(dropped, (r,), (r,))):
        with pytest.raises(OpenDecisionError, match="detach"):
            transform(torch.tensor(0.5))


def test_assigned_values_are_restored_even_after_an_error():
    layer, before = Dropout(RATE), Dropout(RATE).p
    parameter = nn.Parameter(torch.tensor(0.2))
    with pytest.raises(KeyError), assigned(layer, {"rate": parameter}):
        assert layer.p is parameter
        assert not list(layer.parameters())
        raise KeyError
    assert layer.p == before


def test_assigned_leaves_nothing_of_a_transform_behind():
    choice = Choice(PICK, [nn.Identity(), nn.Tanh()])

    def mixed(weights, x):
        with assigned(choice, {"pick": weights}):
            return choice(x).sum()

    gradient = torch.func.grad(mixed)(torch.tensor([0.2, 0.8]), torch.ones(3))
    torch.testing.assert_close(gradient, torch.stack([torch.ones(3), torch.ones(3).tanh()]).sum(1))
    rows = torch.vmap(mixed, (0, None))(torch.eye(2), torch.ones(3))
    torch.testing.assert_close(rows, gradient)
    assert torch.equal(choice.weights, torch.tensor([0.5, 0.5]))


def test_a_derived_value_is_what_the_layer_uses():
    layer = Dropout(RATE.map(lambda rate: rate / 2))
    assert layer.p == pytest.approx(0.15)
    with assigned(layer, {"rate": 0.4}):
        assert layer.p == pytest.approx(0.2)


def test_an_open_layer_starts_at_the_middle_of_its_decision():
    assert Dropout(RATE).p == pytest.approx(0.3)
    assert "Open('rate'" in repr(Dropout(RATE))


def test_assigning_an_unknown_decision_lists_the_known_ones():
    with (
        pytest.raises(OpenDecisionError, match=r"no layer holds .* 'other'; they hold: rate"),
        assigned(Dropout(RATE), {"other": 0.1}),
    ):
        pass


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
    with assigned(choice, {"pick": weights}):
        output = choice(x)
    torch.testing.assert_close(output, 0.2 * x + 0.8 * x.tanh())
    output.sum().backward()
    torch.testing.assert_close(weights.grad, torch.stack([x.sum(), x.tanh().sum()]))


def test_a_choice_with_a_one_hot_weight_is_that_option():
    x = torch.randn(5, 3)
    choice = Choice(PICK, [nn.Identity(), nn.Tanh()])
    with assigned(choice, {"pick": torch.tensor([0.0, 1.0])}):
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


class Counted(nn.Module):
    """Doubles its input, and counts how often."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return 2 * x


def counted_choice() -> tuple[Choice, Counted, Counted]:
    first, second = Counted(), Counted()
    return Choice(PICK, [first, second]), first, second


@pytest.mark.parametrize("weights", [torch.tensor([0.0, 1.0]), [0.0, 1.0], "b"])
def test_a_choice_runs_only_options_with_weight(weights):
    choice, first, second = counted_choice()
    with assigned(choice, {"pick": weights}):
        assert torch.equal(choice(torch.ones(3)), torch.full((3,), 2.0))
    assert (first.calls, second.calls) == (0, 1)


def test_options_without_weight_are_run_for_the_gradient_of_the_weights():
    choice, first, _ = counted_choice()
    weights = torch.tensor([0.0, 1.0], requires_grad=True)
    with assigned(choice, {"pick": weights}):
        choice(torch.ones(3)).sum().backward()
    assert first.calls == 1
    assert weights.grad.tolist() == [6, 6]


def test_a_choice_without_any_weight_is_zero():
    choice, _, _ = counted_choice()
    with assigned(choice, {"pick": torch.zeros(2)}):
        assert torch.equal(choice(torch.ones(3)), torch.zeros(3))


def test_weights_without_values_run_all_options():
    choice, first, second = counted_choice()

    def mixed(weights: torch.Tensor) -> torch.Tensor:
        with assigned(choice, {"pick": weights}):
            return choice(torch.ones(3))

    outputs = torch.vmap(mixed)(torch.eye(2))
    assert torch.equal(outputs, torch.full((2, 3), 2.0))
    assert (first.calls, second.calls) == (1, 1)


def test_an_unknown_choice_names_those_there_are():
    choice, _, _ = counted_choice()
    with (
        pytest.raises(OpenDecisionError, match="'pick': expected one of 'a', 'b', got 'c'"),
        assigned(choice, {"pick": "c"}),
    ):
        pass


@pytest.mark.parametrize(
    ("operation", "kind", "name"),
    [("dropout", Dropout, "p"), ("cutout", Cutout, "share"), ("blend", Blend, "share")],
)
def test_the_values_of_an_open_share_are_checked_wherever_it_goes(operation, kind, name):
    percent = Open("percent", IntDistribution(0, 50))
    graph = Graph()
    x = graph.input("x", (3, 4, 4))
    share = percent.map(lambda value: value / 100)
    graph.add(operation, x, **{name: share})
    assert getattr(kind(share), name) == 0.25
    for wrong in (percent, Open("some", CategoricalDistribution((0.1, 0.2)))):
        with pytest.raises(ValueError, match=wrong.name):
            kind(wrong)
        with pytest.raises(OpenDecisionError, match=wrong.name):
            graph.add(operation, x, **{name: wrong})
