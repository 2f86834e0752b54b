"""Architectures as data: operations on a directed acyclic graph that build an nn.Module."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

Shape = tuple[int, ...]
"""The shape of one example, without the batch dimension."""

INPUT = "input"
_FORMAT = 1


@dataclass(frozen=True)
class Algebra:
    """What is true of an operation whatever its weights; rewriting relies on each word.

    Every word must hold exactly, in training and in evaluation. A channel is one index of the
    first dimension of an example; its positions are the indices of all the others.

    commutative: the order of its inputs does not matter.
    associative: f(a, f(b, c)) = f(f(a, b), c) = f(a, b, c), and f(a) = a.
    linear: f(ax + by) = a f(x) + b f(y), in all inputs taken together.
    multilinear: the same in each input alone, so any all-zero input gives an all-zero output.
    zero_preserving: all-zero inputs give an all-zero output.
    idempotent: f(f(x)) = f(x). involutive: f(f(x)) = x.
    coefficients: the output is the sum of the inputs times these whole numbers; the last one
    holds for all further inputs. (1,) is the identity of one input and the sum of several.
    parametric: it has weights of its own, so two of them are two.
    stochastic: it draws at random while training, so two of them are two.
    keeps_uniform: inputs that are the same at every position of each channel give such an
    output. averages: and a single such input is returned as it is.
    channelwise: permuting the channels of all inputs permutes those of the output, or the equal
    blocks of them that each became, and its own weights are at most renamed.
    exchangeable: any permutation of the channels of an input or of the output is undone by
    renaming its weights.
    concatenates: the output's channels are those of the inputs, one input after another.
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


# By identity, for one declared anew under an old name is another one.
UNKNOWN = Algebra(parametric=True, stochastic=True)
"""What holds where nothing is known: it may have weights, and may draw at random."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One kind of node, declared once: how it is built, what shape it gives, what holds of it.

    module: called as module(input_shapes, **attributes), returns the nn.Module of the node.
    shape: called likewise, returns the output shape; raises ValueError where it does not fit.
    inputs: how many inputs it takes, None for one or more.
    algebra: an Algebra, or a function called likewise that returns one. Of what declares none, or
    uses an attribute that is open, nothing is known: two of them are two.
    openable: the attributes that may hold an open decision.
    """

    name: str
    module: Callable[..., nn.Module]
    shape: Callable[..., Shape]
    inputs: int | None = 1
    algebra: Algebra | Callable[..., Algebra] = UNKNOWN
    openable: frozenset[str] = frozenset()

    def algebra_of(self, shapes: Sequence[Shape], attributes: Mapping[str, Any]) -> Algebra:
        """The algebra that holds on inputs of these shapes under these attributes."""
        if isinstance(self.algebra, Algebra):
            return self.algebra
        try:
            return self.algebra(shapes, **attributes)
        except OpenDecisionError:
            return UNKNOWN

    def attributes(self) -> Mapping[str, inspect.Parameter]:
        """The attributes that a node of this operation takes."""
        return _parameters(self.shape)


@cache
def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return dict(list(inspect.signature(function).parameters.items())[1:])


_OPERATIONS: dict[str, Operation] = {}


def declare(operation: Operation) -> Operation:
    """Make an operation known by its name, so that graphs can use it and be read back.

    Raises:
        GraphError: another operation already has that name.
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
    """The operation declared under a name.

    Raises:
        GraphError: nobody declared it.
    """
    if name not in _OPERATIONS:
        raise GraphError(f"unknown operation {name!r}: known: {', '.join(sorted(_OPERATIONS))}")
    return _OPERATIONS[name]


@dataclass(frozen=True)
class Node:
    """One node: an operation, or an open choice of operations, with its attributes."""

    name: str
    operation: str | Open
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    shape: Shape

    @property
    def is_input(self) -> bool:
        return not isinstance(self.operation, Open) and self.operation == INPUT

    def options(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The operations this node may be, each with the attributes it takes."""
        if not isinstance(self.operation, Open):
            return [(self.operation, self.attributes)]
        return [
            (name, {k: v for k, v in self.attributes.items() if k in operation(name).attributes()})
            for name in self.operation.distribution.choices  # type: ignore[attr-defined]
        ]


class Graph:
    """A directed acyclic graph of operations; a node's name is returned when it is added.

    `dag` is a networkx multigraph: node data holds the `Node`, each edge the `port` of the
    input it feeds, so that sub(a, b) differs from sub(b, a) and x * x has two edges.
    """

    def __init__(self) -> None:
        self.dag: nx.MultiDiGraph[str] = nx.MultiDiGraph()
        self._numbers: dict[str, int] = {}
        self.output_node: str | None = None

    def input(self, name: str, shape: Sequence[int]) -> str:
        """Add an input of one example's shape."""
        return self._insert(Node(self._free(name), INPUT, {}, (), tuple(shape)))

    def add(
        self, operation: str | Open, *inputs: str, name: str | None = None, **attributes: Any
    ) -> str:
        """Add an operation that reads earlier nodes, in the order of its ports.

        operation: a declared name, or an open categorical decision between such names; an
        option takes those of the attributes that it knows.

        Raises:
            GraphError: unknown operation, input or attribute, or shapes that do not fit.
        """
        label = operation.name if isinstance(operation, Open) else operation
        name = self._free(name or label)
        for source in inputs:
            if source not in self.dag:
                raise GraphError(f"node {name!r} reads unknown node {source!r}")
        node = Node(name, operation, attributes, inputs, ())
        return self._insert(Node(name, operation, attributes, inputs, self._shape_of(node)))

    def output(self, name: str) -> None:
        """Say which node the graph returns."""
        if name not in self.dag:
            raise GraphError(f"output names unknown node {name!r}")
        self.output_node = name

    def node(self, name: str) -> Node:
        """The node of that name."""
        found: Node = self.dag.nodes[name]["node"]
        return found

    def nodes(self) -> Iterator[Node]:
        """All nodes, each after those it reads."""
        return (self.node(name) for name in self.dag)

    def live_nodes(self) -> list[Node]:
        """The inputs and the nodes that the output needs, each after those it reads."""
        output = self._output()
        needed = nx.ancestors(self.dag, output) | {output}
        return [node for node in self.nodes() if node.name in needed or node.is_input]

    def open_decisions(self) -> dict[str, Open]:
        """The open decisions of the live nodes, by name."""
        return {
            decision.name: decision
            for node in self.live_nodes()
            for decision in find_open([node.operation, dict(node.attributes)])
        }

    @property
    def output_shape(self) -> Shape:
        """The shape of one example's output."""
        return self.node(self._output()).shape

    def build(self) -> nn.Module:
        """The module that computes the output; open choices become `automl.nn.Choice`."""
        return _GraphModule(self)

    def to_json(self) -> dict[str, Any]:
        """The graph as JSON values; `from_json` reads it back."""
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
            GraphError: another format, or operations that are not declared here.
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
        # From where the last search for this name ended, for nodes are never removed.
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
            raise OpenDecisionError(decision.misuse(f"as the operation of {node.name!r}"))
        taken = {key for _, attributes in node.options() for key in attributes}
        _reject_unknown(node, set(node.attributes) - taken)
        shapes = {self._shape_as(node, *option) for option in node.options()}
        if len(shapes) > 1:
            raise GraphError(f"node {node.name!r}: its open choices differ in shape: {shapes}")
        return shapes.pop()

    def _shape_as(self, node: Node, name: str, attributes: Mapping[str, Any]) -> Shape:
        kind = operation(name)
        _reject_unknown(node, set(attributes) - set(kind.attributes()))
        for key in attributes.keys() - kind.openable:
            for decision in find_open(attributes[key]):
                raise OpenDecisionError(decision.misuse(f"as {key!r} of {name} {node.name!r}"))
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
        # Trainers change modes often, and torch's own way takes longer than many a layer.
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
