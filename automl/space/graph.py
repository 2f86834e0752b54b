"""Architectures as data: operations on a directed acyclic graph that build an nn.Module."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import networkx as nx
from optuna.distributions import (
    CategoricalDistribution,
    distribution_to_json,
    json_to_distribution,
)
from torch import Tensor, nn

from automl.errors import GraphError, OpenDecisionError
from automl.space.decisions import Open, find_open
from automl.space.layers import Choice
from automl.space.uses import Openable, Use, UseKind

Shape = tuple[int, ...]
"""The shape of one example, without the batch dimension."""

INPUT = "input"
_FORMAT = 1


@dataclass(frozen=True)
class Algebra:
    """Properties of an operation that hold for all of its weights; graph rewriting relies on them.

    Every property must hold exactly, both in training and in evaluation mode. A channel is one
    index of an example's first dimension; its positions are the indices of the other dimensions.

    Attributes:
        commutative: The order of the inputs does not matter.
        associative: f(a, f(b, c)) = f(f(a, b), c) = f(a, b, c), and f(a) = a.
        linear: f(ax + by) = a f(x) + b f(y), for all inputs taken together.
        multilinear: Linear in each input alone, so any all-zero input gives an all-zero output.
        zero_preserving: All-zero inputs give an all-zero output.
        idempotent: f(f(x)) = f(x).
        involutive: f(f(x)) = x.
        coefficients: The output is the sum of the inputs times these integers; the last one
            applies to all further inputs. (1,) is the identity of one input, or the sum of
            several.
        parametric: The operation has weights, so two instances differ.
        stochastic: The operation draws random numbers in training, so two instances differ.
        keeps_uniform: Inputs that are constant over the positions of each channel give such an
            output.
        averages: In addition to `keeps_uniform`, a single such input is returned unchanged.
        channelwise: Permuting the channels of all inputs permutes the channels of the output
            (or the equal-sized blocks that they became), and at most reorders the weights.
        exchangeable: Reordering the weights can undo any permutation of the channels of an input
            or of the output.
        concatenates: The output's channels are those of the inputs, one input after another.
    """

    commutative: bool = False
    associative: bool = False
    linear: bool = False
    multilinear: bool = False
    zero_preserving: bool = False
    idempotent: bool = False
    involutive: bool = False
    coefficients: tuple[int, ...] | None = None
    parametric: bool = False
    stochastic: bool = False
    keeps_uniform: bool = False
    averages: bool = False
    channelwise: bool = False
    exchangeable: bool = False
    concatenates: bool = False


UNKNOWN = Algebra(parametric=True, stochastic=True)
"""The algebra of an undeclared operation: it may have weights and draw random numbers."""


# Compared by identity: an operation declared again under the same name is a different one.
@dataclass(frozen=True, eq=False)
class Operation:
    """One kind of node, declared once: how to build it, its output shape and its algebra.

    Attributes:
        name: The name by which graphs refer to it.
        module: Called as module(input_shapes, **attributes); returns the nn.Module of the node.
        shape: Called the same way; returns the output shape, and raises ValueError if the inputs
            do not fit.
        inputs: The number of inputs; None for one or more.
        algebra: An Algebra, or a function called the same way that returns one. Without an
            algebra, or with an attribute left open, no property is assumed, and two instances
            always differ.
        openable: What a trainer may do with each attribute that may hold an open decision.
    """

    name: str
    module: Callable[..., nn.Module]
    shape: Callable[..., Shape]
    inputs: int | None = 1
    algebra: Algebra | Callable[..., Algebra] = UNKNOWN
    openable: Mapping[str, Openable] = field(default_factory=dict)

    def algebra_of(self, shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Algebra:
        """Return the properties that hold for these input shapes and attributes."""
        if isinstance(self.algebra, Algebra):
            return self.algebra
        try:
            return self.algebra(shapes, **attributes)
        except OpenDecisionError:
            return UNKNOWN

    def attributes(self) -> Mapping[str, inspect.Parameter]:
        """Return the attributes that a node of this operation takes."""
        return _parameters(self.shape)


@cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return dict(list(inspect.signature(function).parameters.items())[1:])


_OPERATIONS: dict[str, Operation] = {}


def declare(operation: Operation) -> Operation:
    """Register an operation, so that graphs can use it and be read back from JSON.

    Raises:
        GraphError: Another module has declared an operation of that name.
    """
    known = _OPERATIONS.get(operation.name)
    if known is not None and known.module.__module__ != operation.module.__module__:
        raise GraphError(
            f"operation {operation.name!r} is declared by {known.module.__module__} "
            f"and by {operation.module.__module__}: rename one"
        )
    _OPERATIONS[operation.name] = operation
    return operation


def operation(name: str) -> Operation:
    """Return the operation declared under a name.

    Raises:
        GraphError: No operation of that name is declared.
    """
    if name not in _OPERATIONS:
        raise GraphError(f"unknown operation {name!r}: known: {', '.join(sorted(_OPERATIONS))}")
    return _OPERATIONS[name]


@dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
        name: Unique in the graph.
        operation: The operation's name, or an open choice between several.
        attributes: The operation's attributes, such as `channels`.
        inputs: The names of the nodes it reads, in the order of its ports.
        shape: The shape of one example's output.
    """

    name: str
    operation: str | Open
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    shape: Shape

    @property
    def is_input(self) -> bool:
        return not isinstance(self.operation, Open) and self.operation == INPUT

    def options(self) -> list[tuple[str, Mapping[str, Any]]]:
        """List the operations that this node may become, each with the attributes it takes."""
        if not isinstance(self.operation, Open):
            return [(self.operation, self.attributes)]
        return [
            (name, {k: v for k, v in self.attributes.items() if k in operation(name).attributes()})
            for name in self.operation.distribution.choices  # type: ignore[attr-defined]
        ]


class Graph:
    """A directed acyclic graph of operations; adding a node returns its name.

    `dag` is a networkx multigraph: node data holds the `Node`, each edge the `port` of the input
    it feeds, so that subtract(a, b) differs from subtract(b, a) and x * x has two edges.
    """

    def __init__(self) -> None:
        self.dag: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        self._numbers: dict[str, int] = {}
        self.output_node: str | None = None

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Add an input and return its name.

        Args:
            name: The node's name; a number is appended if it is taken.
            shape: The shape of one example.
        """
        return self._insert(Node(self._free(name), INPUT, {}, (), tuple(shape)))

    def add(
        self, operation: str | Open, *inputs: str, name: str | None = None, **attributes: Any
    ) -> str:
        """Add an operation that reads earlier nodes, and return the new node's name.

        Args:
            operation: A declared name, or an open categorical decision between such names.
            inputs: The nodes to read, in the order of the operation's ports.
            name: The node's name; a number is appended if it is taken.
            attributes: The operation's attributes; each option of an open decision takes the ones
                that it knows.

        Raises:
            GraphError: An operation, input or attribute is unknown, or the shapes do not fit.
        """
        label = operation.name if isinstance(operation, Open) else operation
        name = self._free(name or label)
        for source in inputs:
            if source not in self.dag:
                raise GraphError(f"node {name!r} reads unknown node {source!r}")
        node = Node(name, operation, attributes, inputs, ())
        return self._insert(Node(name, operation, attributes, inputs, self._shape_of(node)))

    def output(self, name: str) -> None:
        """Set the node whose value the graph returns."""
        if name not in self.dag:
            raise GraphError(f"output names unknown node {name!r}")
        self.output_node = name

    def node(self, name: str) -> Node:
        """Return the node of that name."""
        found: Node = self.dag.nodes[name]["node"]
        return found

    def nodes(self) -> Iterator[Node]:
        """Iterate over all nodes, each after those it reads."""
        return (self.node(name) for name in self.dag)

    def live_nodes(self) -> list[Node]:
        """List the inputs and the nodes that the output needs, each after those it reads."""
        output = self._output()
        needed = nx.ancestors(self.dag, output) | {output}
        return [node for node in self.nodes() if node.name in needed or node.is_input]

    def open_decisions(self) -> dict[str, Open]:
        """Return the open decisions of the live nodes, by name."""
        return {
            decision.name: decision
            for node in self.live_nodes()
            for decision in find_open([node.operation, dict(node.attributes)])
        }

    def uses(self) -> Iterator[tuple[str, Use]]:
        """Iterate over the uses of open decisions in the live nodes, each after its decision."""
        for node in self.live_nodes():
            if isinstance(node.operation, Open):
                use = Use(UseKind.OPERATION, node.name, differentiable=True)
                yield node.operation.name, use
            for name, attributes in node.options():
                yield from _uses_in(name, attributes)

    @property
    def output_shape(self) -> Shape:
        """The shape of one example's output."""
        return self.node(self._output()).shape

    def build(self) -> nn.Module:
        """Build the module that computes the output; open choices become `automl.nn.Choice`."""
        return _GraphModule(self)

    def to_json(self) -> dict[str, Any]:
        """Return the graph as JSON values that `from_json` reads back."""
        nodes = [
            {
                "name": node.name,
                "operation": _encode(node.operation),
                "attributes": {k: _encode(v) for k, v in node.attributes.items()},
                "inputs": list(node.inputs),
                **({"shape": list(node.shape)} if node.is_input else {}),
            }
            for node in self.nodes()
        ]
        return {"format": _FORMAT, "nodes": nodes, "output": self.output_node}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Graph":
        """Read a graph written by `to_json`.

        Raises:
            GraphError: The format is unknown, or the graph uses operations not declared here.
        """
        if data.get("format") != _FORMAT:
            raise GraphError(f"graph format {data.get('format')!r} is not {_FORMAT}")
        graph = cls()
        for node in data["nodes"]:
            if node["operation"] == INPUT:
                graph.input(node["name"], node["shape"])
                continue
            attributes = {k: _decode(v) for k, v in node["attributes"].items()}
            kind = _decode(node["operation"])
            graph.add(kind, *node["inputs"], name=node["name"], **attributes)
        if data["output"] is not None:
            graph.output(data["output"])
        return graph

    def _output(self) -> str:
        if self.output_node is None:
            raise GraphError("the graph has no output: call graph.output(node)")
        return self.output_node

    def _free(self, name: str) -> str:
        if name not in self.dag:
            return name
        # Nodes are never removed, so start where the last search for this name ended.
        number = self._numbers.get(name, 2)
        while f"{name}_{number}" in self.dag:
            number += 1
        self._numbers[name] = number
        return f"{name}_{number}"

    def _insert(self, node: Node) -> str:
        self.dag.add_node(node.name, node=node)
        for port, source in enumerate(node.inputs):
            self.dag.add_edge(source, node.name, port=port)
        return node.name

    def _shape_of(self, node: Node) -> Shape:
        if isinstance(node.operation, Open) and not isinstance(
            node.operation.distribution, CategoricalDistribution
        ):
            decision = node.operation
            raise decision.misused(f"as the operation of {node.name!r}")
        taken = {key for _, attributes in node.options() for key in attributes}
        _reject_unknown(node, set(node.attributes) - taken)
        shapes = {self._shape_as(node, *option) for option in node.options()}
        if len(shapes) > 1:
            raise GraphError(f"node {node.name!r}: its open choices differ in shape: {shapes}")
        return shapes.pop()

    def _shape_as(self, node: Node, name: str, attributes: Mapping[str, Any]) -> Shape:
        kind = operation(name)
        _reject_unknown(node, set(attributes) - set(kind.attributes()))
        for key in attributes.keys() - kind.openable.keys():
            for decision in find_open(attributes[key]):
                raise decision.misused(f"as {key!r} of {name} {node.name!r}")
        shapes = [self.node(source).shape for source in node.inputs]
        if kind.inputs not in (None, len(shapes)) or not shapes:
            wanted = kind.inputs or "one or more"
            raise GraphError(f"node {node.name!r}: {name} takes {wanted} inputs, got {len(shapes)}")
        try:
            return tuple(kind.shape(shapes, **attributes))
        except (ValueError, TypeError) as error:
            raise GraphError(f"node {node.name!r}: {name} on {shapes}: {error}") from error


def _reject_unknown(node: Node, unknown: set[str]) -> None:
    if unknown:
        known = sorted({key for name, _ in node.options() for key in operation(name).attributes()})
        raise GraphError(
            f"node {node.name!r}: unknown attribute {', '.join(sorted(unknown))}; "
            f"known: {', '.join(known) or 'none'}"
        )


def _uses_in(name: str, attributes: Mapping[str, Any]) -> Iterator[tuple[str, Use]]:
    for key, value in attributes.items():
        for decision in find_open(value):
            openable = operation(name).openable[key]
            use = Use(UseKind.ATTRIBUTE, name, key, openable.scope, openable.differentiable)
            yield decision.name, use


def _encode(value: Any) -> Any:
    if isinstance(value, Open):
        return {"open": value.name, "distribution": distribution_to_json(value.distribution)}
    return list(value) if isinstance(value, tuple) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and "open" in value:
        return Open(value["open"], json_to_distribution(value["distribution"]))
    return tuple(value) if isinstance(value, list) else value


class _GraphModule(nn.Module):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        live = graph.live_nodes()
        self._inputs = [node.name for node in live if node.is_input]
        self._steps = [(node.name, node.inputs) for node in live if not node.is_input]
        self._output = str(graph.output_node)
        self.layers = nn.ModuleDict({n.name: _layer(graph, n) for n in live if not n.is_input})

    def forward(self, *inputs: Tensor) -> Tensor:
        values = dict(zip(self._inputs, inputs, strict=True))
        for (name, sources), layer in zip(self._steps, self.layers.values(), strict=True):
            values[name] = layer(*[values[source] for source in sources])
        return values[self._output]

    def train(self, mode: bool = True) -> "_GraphModule":
        # Trainers switch modes often, and torch's own traversal is slower than many layers.
        self.training = self.layers.training = mode
        for layer in self.layers.values():
            if layer._modules or type(layer).train is not nn.Module.train:
                layer.train(mode)
            else:
                object.__setattr__(layer, "training", mode)
        return self


def _layer(graph: Graph, node: Node) -> nn.Module:
    shapes = [graph.node(source).shape for source in node.inputs]
    modules = [operation(name).module(shapes, **kept) for name, kept in node.options()]
    return Choice(node.operation, modules) if isinstance(node.operation, Open) else modules[0]
