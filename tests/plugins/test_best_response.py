"""Responsive layers learn the exact best response of a linear network, where it is known.

With white inputs (x^T x / n = 1), the least squares weights W, and dropout of the inputs at rate p,
the best response is (1 - p) W, because the expected loss is |W' - W|^2 + p / (1 - p) |W'|^2. With
the penalty l |W'|^2 / 2 of half the squared error, it is W / (1 + l).
"""

import functools
import itertools

import pytest
import torch
from automl_plugins._bilevel.response import (
    Signal,
    collapse,
    constant,
    convert,
    mean_squared_norm,
    parts,
    responding_parameters,
)
from torch import nn
from torch.autograd import forward_ad

INPUTS = torch.tensor(
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64
)
TARGETS = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LEAST_SQUARES = TARGETS.T @ INPUTS / 4
MASKS = torch.tensor(list(itertools.product([0, 1], repeat=4)), dtype=torch.float64)


def linear(centred):
    torch.manual_seed(0)
    layer, signal = nn.Linear(4, 2, bias=False).double(), Signal()
    convert(layer, 1, signal, centred)
    return layer, signal


def expected_dropout_loss(forward, rates):
    """The expected squared error at some rates: each example with each of the possible masks.

    Args:
        forward: Returns the outputs for inputs and the rates of the examples [batch].
        rates: The rates.
    """
    every = list(itertools.product(range(4), range(len(MASKS)), rates))
    example, mask, rate = (torch.tensor(column) for column in zip(*every, strict=True))
    kept, rate = MASKS[mask], rate.double()
    probability = torch.where(kept > 0, 1 - rate[:, None], rate[:, None]).prod(1)
    outputs = forward(INPUTS[example] * kept / (1 - rate[:, None]), rate)
    return (probability * (TARGETS[example] - outputs).square().sum(1)).sum() / (4 * len(rates))


def minimise(loss, parameters):
    """Minimise a deterministic loss to the end."""
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=400,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


@functools.cache
def trained_stn():
    layer, signal = linear(centred=False)

    def forward(inputs, rates):
        with signal.feeding(rates[:, None]):
            return layer(inputs)

    minimise(lambda: expected_dropout_loss(forward, [0.1, 0.3, 0.5]), list(layer.parameters()))
    return layer, signal


def trained_delta(rate, linearised):
    """Return a layer with the best weights at a rate, which learnt to respond around it."""
    layer, signal = linear(centred=True)
    with torch.no_grad():
        layer.weight.copy_((1 - rate) * LEAST_SQUARES)

    def forward(inputs, rates):
        delta = rates[:, None] - rate
        with constant(layer):
            if not linearised:
                with signal.feeding(delta):
                    return layer(inputs)
            with forward_ad.dual_level(), signal.feeding(delta, tangent=True):
                output, tangent = parts(layer(inputs))
                return output + tangent

    near = [rate - 0.2, rate, rate + 0.2]
    minimise(lambda: expected_dropout_loss(forward, near), responding_parameters(layer))
    return layer, signal


def test_stn_learns_the_best_response_to_dropout():
    layer, _ = trained_stn()
    for rate in (0.1, 0.2, 0.45):
        weight = collapse(layer, torch.tensor([rate])).weight
        torch.testing.assert_close(weight, (1 - rate) * LEAST_SQUARES, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("linearised", [True, False])
def test_delta_stn_learns_the_best_response_to_dropout(linearised):
    layer, _ = trained_delta(0.3, linearised)
    for change in (-0.2, 0.0, 0.1):
        weight = collapse(layer, torch.tensor([change])).weight
        expected = (1 - 0.3 - change) * LEAST_SQUARES
        torch.testing.assert_close(weight, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("delta", [False, True], ids=["stn", "delta"])
def test_the_hypergradient_is_that_of_the_best_response(delta):
    layer, signal = trained_delta(0.3, linearised=True) if delta else trained_stn()
    inputs, targets = INPUTS + 0.5, TARGETS - 0.3
    rate = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    fed = rate - rate.detach() if delta else rate
    with signal.feeding(fed.expand(4, 1)):
        loss = (layer(inputs) - targets).square().mean()
    (gradient,) = torch.autograd.grad(loss, rate)

    def outer(value):
        return float((inputs @ ((1 - value) * LEAST_SQUARES).T - targets).square().mean())

    assert float(gradient) == pytest.approx(
        (outer(0.3 + 1e-5) - outer(0.3 - 1e-5)) / 2e-5, rel=1e-4
    )


def test_the_response_to_a_penalty_is_the_derivative_of_the_best_one():
    strength = 0.5
    layer, signal = linear(centred=True)
    best = LEAST_SQUARES / (1 + strength)
    with torch.no_grad():
        layer.weight.copy_(best)

    def loss():
        total = torch.zeros(())
        for change in (-1e-3, 1e-3):
            delta = torch.tensor([change], dtype=torch.float64)
            with constant(layer):
                with signal.feeding(delta):
                    error = (layer(INPUTS) - TARGETS).square().sum(1).mean() / 2
                penalty = (strength + change) / 2 * mean_squared_norm(layer, delta)
            total = total + 1e6 * (error + penalty)
        return total

    minimise(loss, responding_parameters(layer))
    response = collapse(layer, torch.ones(1).double()).weight - best
    expected = -LEAST_SQUARES / (1 + strength) ** 2
    torch.testing.assert_close(response, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("centred", [False, True])
def test_the_norm_is_the_mean_of_those_of_collapsed_networks(centred):
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    convert(module.double(), 2, Signal(), centred)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    hyper = torch.randn(3, 2).double()
    expected = torch.stack(
        [sum(p.square().sum() for p in collapse(module, each).parameters()) for each in hyper]
    )
    torch.testing.assert_close(mean_squared_norm(module, hyper), expected.mean())
    torch.testing.assert_close(mean_squared_norm(module, hyper[0]), expected[0])
