"""The cost of a trial: a metric, or a weighted sum of metrics."""

import math

import pytest

from automl import TrialError, UsageError
from automl.plugin.cost_metric import CostMetric

SUM = CostMetric.parse("inner_gradients+1.1*hessian_vector_products")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("seconds", {"seconds": 1}),
        ("any name", {"any name": 1}),
        ("2*jvps", {"jvps": 2}),
        (" a + .5 * b+1e-3*c.d ", {"a": 1, "b": 0.5, "c.d": 0.001}),
        ("1e+2*a+b", {"a": 100, "b": 1}),
    ],
)
def test_its_text(text, weights):
    assert CostMetric.parse(text).weights == weights


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a+", "it ends with a sign"),
        ("a++b", "cannot read '"),
        ("a*2", r"cannot read '\*2'"),
        ("2*", r"cannot read '2\*'"),
        ("+a", r"cannot read '\+a'"),
        ("a+a", "a is named twice"),
        ("0*a+b", "the weight of a must be positive"),
        ("1e999*a+b", "the weight of a must be positive and finite"),
        ("a-2*b", "cannot read"),
    ],
)
def test_other_text(text, why):
    with pytest.raises(UsageError, match=rf"--cost-metric: expected a metric or .* got .*{why}"):
        CostMetric.parse(text)


def test_a_sum_is_weighted_and_counts_that_are_not_reported_are_zero():
    assert SUM.of({"inner_gradients": 3, "hessian_vector_products": 10, "x": 1}) == 14
    assert SUM.of({"inner_gradients": 3}) == 3
    assert str(SUM) == "inner_gradients+1.1*hessian_vector_products"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"x": 1.0}, "the report has no cost 'inner_gradients', 'hessian_vector_products'"),
        ({"inner_gradients": math.nan}, "must be seconds, at least 0, got nan"),
        ({"inner_gradients": -1.0}, "must be seconds, at least 0, got -1"),
    ],
)
def test_a_report_without_it(metrics, message):
    with pytest.raises(TrialError, match=message):
        SUM.of(metrics)


def test_other_metrics_of_a_sum_must_be_reported():
    with pytest.raises(TrialError, match="the report has no cost 'euros'; its metrics: jvps"):
        CostMetric.parse("jvps+euros").of({"jvps": 1.0})
