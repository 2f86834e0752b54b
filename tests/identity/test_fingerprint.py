"""Identities: equal values have equal text, and errors name values that cannot be encoded."""

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

import automl
from automl import Candidate, Graph, Open
from automl.identity.fingerprint import canonical_json, digest_of
from automl.identity.keys import SideKeys, static_keys
from automl.plugin.registry import Registry
from automl.study.plan import plan
from automl.study.search_request import SearchRequest

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_every_json_value_has_canonical_json(value):
    assert canonical_json(value) == canonical_json(value)


def test_negative_zero_equals_zero_but_types_differ():
    assert canonical_json({"x": [-0.0]}) == canonical_json({"x": (0.0,)})
    assert len({canonical_json(value) for value in (0, 0.0, False, "0", None)}) == 5
    zeros = [digest_of({"x": value}) for value in (0.0, -0.0)]
    assert zeros[0] == zeros[1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, float("nan")]}, r"^a\[1\] is nan of type float"),
        ({"a": {"b": float("inf")}}, r"^a\.b is inf of type float"),
        ({"a": {1}}, r"^a is \{1\} of type set"),
        ({"a": {1: 2}}, r"^a is \{1: 2\} of type dict"),
        (b"x", r"^the value is b'x' of type bytes"),
        ({"a": enum.Enum("E", "A").A}, r"^a is <E\.A: 1> of type E"),
    ],
)
def test_values_that_json_cannot_represent_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        canonical_json(value)


def test_the_version_of_automl_counts():
    made = plan(SearchRequest("mlp"), Registry())
    assert made.parts.side_keys["automl"] == automl.__version__


@pytest.mark.parametrize(
    ("one", "other"),
    [({1: "a"}, {"1": "a"}), ({1, 2}, [1, 2]), (float("inf"), "inf"), (float("nan"), "nan")],
)
def test_hyperparameters_that_json_would_confuse_differ(one, other):
    def key(value):
        module = Candidate(lambda: None, {"x": value})
        return canonical_json(dict(static_keys(module, SideKeys({})).shared))

    assert key(one) != key(other)


def linear():
    graph = Graph()
    graph.output(graph.add("linear", graph.input("x", (4,)), features=3))
    return graph


def test_functions_of_one_open_hyperparameter_differ():
    def key(function, low=1):
        decision = Open("x", IntDistribution(low, 3)).map(function)
        return static_keys(Candidate(linear(), {"l2": decision}), SideKeys({})).identity.l1

    assert key(lambda x: x / 10) == key(lambda x: 2 * x / 20)
    assert key(lambda x: x / 10) != key(lambda x: x / 100)
    assert key(lambda x: x / 10) != key(lambda x: x / 10, low=2)


def test_a_function_of_a_continuous_hyperparameter_equals_no_other():
    decision = Open("x", FloatDistribution(0.0, 1.0)).map(lambda x: x / 10)
    keys = static_keys(Candidate(linear(), {"l2": [decision]}), SideKeys({}))
    assert keys.identity.l0
    assert keys.identity.l1 is None
