"""Intervals of scores on test data."""

import pytest
import torch

from automl.export.intervals import intervals
from automl.ledger.audits import wilson


def measures(outputs, targets):
    errors = (outputs - targets).double()
    return {"mae": float(errors.abs().mean()), "bias": float(errors.mean())}


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    outputs = torch.randn(400, generator=torch.Generator().manual_seed(0))
    low, high = intervals(measures, outputs, torch.zeros(400))["bias"]
    mean, deviation = float(outputs.mean()), float(outputs.std())
    assert low == pytest.approx(mean - 1.96 * deviation / 20, abs=0.02)
    assert high == pytest.approx(mean + 1.96 * deviation / 20, abs=0.02)


def test_outputs_stay_with_their_targets():
    values = torch.arange(50.0)
    assert intervals(measures, values, values)["mae"] == (0.0, 0.0)


def test_an_accuracy_without_errors_is_not_certain():
    targets = torch.zeros(30)
    found = intervals(lambda o, t: {"accuracy": float((o == t).double().mean())}, targets, targets)
    expected = wilson(30, 30)
    assert found["accuracy"] == (expected.low, expected.high)
    assert found["accuracy"][0] < 0.95


def test_a_metric_that_cannot_be_measured_has_no_interval():
    def evaluate(outputs, targets):
        if len(targets.unique()) < 2:
            raise ValueError("only one label")
        return {"accuracy": 85.0, "auc": float("nan"), "f1": float(outputs.mean())}

    rare = torch.zeros(40)
    rare[:20] = 1
    found = intervals(evaluate, torch.rand(40), rare)
    assert found["accuracy"] == (85.0, 85.0)  # no share, so not Wilson's
    assert "auc" not in found
    assert found["f1"][0] < found["f1"][1]
    assert intervals(evaluate, torch.rand(40), torch.zeros(40)) == {}


def test_the_same_data_have_the_same_interval():
    outputs = torch.randn(20, generator=torch.Generator().manual_seed(0))
    first, again, other = (intervals(measures, outputs, outputs * 0, seed) for seed in (1, 1, 2))
    assert first == again != other
