"""A value belongs to a distribution if it is a choice, or in its bounds and on its grid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from automl import contains
from automl.space.distributions import nearest

CHOICES = CategoricalDistribution(["a", None, 3, 0.3])
FLOAT = FloatDistribution(0.0, 1.0)
STEPS = FloatDistribution(0.1, 0.7, step=0.2)
FINE = FloatDistribution(0.1, 1.0, step=1e-9)
INT = IntDistribution(1, 7, step=3)
LOG = IntDistribution(2, 9, log=True)

INSIDE = [
    *((CHOICES, value) for value in ("a", None, 3, 3.0, 0.3)),
    *((FLOAT, value) for value in (0, 0.0, 0.25, 1, np.float32(0.5))),
    *((STEPS, value) for value in (0.1, 0.1 + 0.2, 0.5, 0.7)),
    *((FINE, 0.1 + step * 1e-9) for step in (1, 333_333_333, 899_999_999)),
    *((INT, value) for value in (1, 4.0, np.int64(7))),
    *((LOG, value) for value in (2, 5, 9)),
]
OUTSIDE = [
    *((CHOICES, value) for value in ("b", 4, [3], math.nan)),
    *((FLOAT, value) for value in (-0.1, 1.1, math.nan, math.inf, "0.5", None, True, [0.5])),
    *((STEPS, value) for value in (0.2, 0.9, 0.11)),
    *((INT, value) for value in (2, 4.5, 10, math.inf, math.nan, True, "4")),
    *((LOG, value) for value in (1, 2.5, 10)),
]


@pytest.mark.parametrize(("distribution", "value"), INSIDE)
def test_a_value_that_a_strategy_could_draw_is_inside(distribution, value):
    assert contains(distribution, value)


@pytest.mark.parametrize(("distribution", "value"), OUTSIDE)
def test_any_other_value_is_outside(distribution, value):
    assert not contains(distribution, value)


def numeric_distributions():
    bounds = st.tuples(st.integers(1, 50), st.integers(0, 50)).map(lambda b: (b[0], b[0] + b[1]))
    whole = st.builds(lambda b, s: IntDistribution(*b, step=s), bounds, st.integers(1, 7))
    stepped = st.builds(lambda b, s: FloatDistribution(*b, step=s), bounds, st.floats(0.05, 3))
    plain = st.builds(lambda b, log: FloatDistribution(*b, log=log), bounds, st.booleans())
    return whole | stepped | plain


@given(numeric_distributions(), st.floats(0, 1))
def test_the_nearest_value_belongs_to_the_distribution(distribution, share):
    value = distribution.low + share * (distribution.high - distribution.low)
    found = nearest(distribution, value)
    assert contains(distribution, found)
    assert abs(found - value) <= (distribution.step or 0) / 2 * (1 + 1e-6)
    assert nearest(distribution, found) == pytest.approx(found)


@pytest.mark.parametrize("value", [0.9, -0.1, float("nan"), float("inf"), True])
def test_a_value_outside_has_no_nearest(value):
    with pytest.raises(ValueError, match="not within"):
        nearest(FloatDistribution(0.1, 0.5), value)
