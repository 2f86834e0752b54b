"""Architectures as data."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from torch import nn

from automl import Graph, GraphError, Open, OpenDecisionError, Operation, declare
from automl.nn import Choice

VECTOR_STEPS = ["relu", "gelu", "identity", "linear", "batch_norm", "layer_norm", "dropout"]
PAIR_STEPS = ["add", "multiply", "subtract"]


def vectors(features: int = 4) -> tuple[Graph, str]:
    graph = Graph()
    return graph, graph.input("x", (features,))


def run(graph: Graph, *inputs: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return graph.build().eval()(*inputs)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of vectors with several inputs, dead nodes, and open decisions."""
    graph, x = vectors()
    nodes = [x, graph.input("y", (4,))]
    for step in draw(st.lists(st.sampled_from(VECTOR_STEPS + PAIR_STEPS), min_size=1, max_size=8)):
        pick = st.sampled_from(nodes)
        if step in PAIR_STEPS:
            nodes.append(graph.add(step, draw(pick), draw(pick)))
        elif step == "linear":
            nodes.append(graph.add(step, draw(pick), features=4, bias=draw(st.booleans())))
        elif step == "dropout":
            rate = Open("rate", FloatDistribution(0.1, 0.5))
            nodes.append(graph.add(step, draw(pick), p=rate if draw(st.booleans()) else 0.25))
        else:
            choice = Open("kind", CategoricalDistribution(["relu", "tanh"]))
            kind = choice if draw(st.booleans()) and step == "relu" else step
            nodes.append(graph.add(kind, draw(pick)))
    graph.output(draw(st.sampled_from(nodes[2:])))
    return graph


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_a_graph_survives_json_whole(graph):
    text = json.dumps(graph.to_json())
    again = Graph.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert again.output_shape == graph.output_shape
    assert set(again.open_decisions()) == set(graph.open_decisions())
    x, y = torch.randn(2, 5, 4)
    assert torch.equal(run(again, x, y), run(graph, x, y))


def test_an_unknown_format_is_refused():
    with pytest.raises(GraphError, match="format 99 is not 1"):
        Graph.from_json({"format": 99, "nodes": [], "output": None})


def test_ports_keep_their_order():
    graph, x = vectors(2)
    double = graph.add("add", x, x)
    graph.output(graph.add("subtract", x, double))
    assert torch.equal(run(graph, torch.ones(1, 2)), -torch.ones(1, 2))


def test_a_node_may_read_another_twice():
    graph, x = vectors(2)
    graph.output(graph.add("multiply", x, x))
    assert torch.equal(run(graph, torch.full((1, 2), 3.0)), torch.full((1, 2), 9.0))


def test_names_are_made_free():
    graph, x = vectors()
    assert [graph.add("relu", x) for _ in range(3)] == ["relu", "relu_2", "relu_3"]


def test_dead_nodes_are_not_built():
    graph, x = vectors()
    graph.add("linear", x, features=100)
    graph.output(graph.add("relu", x))
    assert list(graph.build().parameters()) == []


def test_open_decisions_of_dead_nodes_do_not_count():
    graph, x = vectors()
    graph.add("dropout", x, p=Open("rate", FloatDistribution(0.1, 0.5)))
    graph.output(graph.add("relu", x))
    assert graph.open_decisions() == {}


def test_an_image_network_has_the_shapes_it_says():
    graph = Graph()
    h = graph.input("x", (3, 9, 8))
    for step, options in [
        ("conv2d", {"channels": 6, "kernel": 3, "stride": 2}),
        ("batch_norm", {}),
        ("max_pool2d", {"kernel": 2}),
        ("flatten", {}),
    ]:
        h = graph.add(step, h, **options)
    graph.output(h)
    assert graph.output_shape == (24,)
    assert run(graph, torch.randn(7, 3, 9, 8)).shape == (7, 24)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        ("nonsense", {}, "unknown operation 'nonsense': known: .*relu"),
        ("linear", {"widht": 3}, "node 'linear': unknown attribute widht; known: bias, features"),
        ("linear", {}, "node 'linear'.*features"),
        ("conv2d", {"channels": 3}, "node 'conv2d'.*needs images"),
        ("subtract", {}, "node 'subtract': subtract takes 2 inputs, got 1"),
        ("dropout", {"p": 1.0}, r"node 'dropout'.*\[0, 1\)"),
    ],
)
def test_what_does_not_fit_is_named(step, options, message):
    graph, x = vectors()
    with pytest.raises(GraphError, match=message):
        graph.add(step, x, **options)


def test_inputs_and_outputs_must_be_known():
    graph, x = vectors()
    with pytest.raises(GraphError, match="'relu' reads unknown node 'nowhere'"):
        graph.add("relu", "nowhere")
    with pytest.raises(GraphError, match="output names unknown node 'nowhere'"):
        graph.output("nowhere")
    graph.add("relu", x)
    with pytest.raises(GraphError, match="no output"):
        graph.build()


def test_windows_larger_than_the_image_are_refused():
    graph = Graph()
    x = graph.input("x", (1, 1, 1))
    with pytest.raises(GraphError, match="window of 2 does not fit a side of 1"):
        graph.add("max_pool2d", x)


def test_an_open_operation_becomes_a_choice_of_its_options():
    graph, x = vectors()
    kind = Open("kind", CategoricalDistribution(["relu", "identity", "linear"]))
    graph.output(graph.add(kind, x, features=4))
    (choice,) = graph.build().layers.values()
    assert isinstance(choice, Choice)
    assert [type(option) for option in choice.options] == [nn.ReLU, nn.Identity, nn.Linear]
    assert graph.open_decisions()["kind"] is kind


def test_open_options_must_agree_in_shape():
    graph, x = vectors()
    kind = Open("kind", CategoricalDistribution(["relu", "linear"]))
    with pytest.raises(GraphError, match="differ in shape"):
        graph.add(kind, x, features=5)


def test_an_attribute_that_cannot_be_open_names_the_decision():
    graph, x = vectors()
    width = Open("width", FloatDistribution(1, 9), "my-space", "my-trainer")
    with pytest.raises(
        OpenDecisionError, match=r"'width' of space my-space .*my-trainer.*'features'"
    ):
        graph.add("linear", x, features=width)


def test_only_a_categorical_decision_can_stand_for_an_operation():
    graph, x = vectors()
    with pytest.raises(OpenDecisionError, match=r"'rate'.*as the operation of 'rate'"):
        graph.add(Open("rate", FloatDistribution(0, 1)), x)


def test_a_declared_operation_can_be_used_and_not_redeclared_elsewhere():
    name = "test_graph_half"
    half = Operation(name, lambda shapes: nn.Softsign(), lambda shapes: shapes[0])
    declare(half)
    declare(half)
    graph, x = vectors(1)
    graph.output(graph.add(name, x))
    assert run(graph, torch.ones(1, 1)).item() == 0.5
    with pytest.raises(GraphError, match=r"'relu' is declared by automl\.operations and by"):
        declare(Operation("relu", lambda shapes: nn.ReLU(), lambda shapes: shapes[0]))
