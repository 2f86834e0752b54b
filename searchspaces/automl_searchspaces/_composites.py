"""Operations composed of standard ones, under the names of benchmark spaces.

A chosen operation is written in standard operations, so that equal networks are recognized as
equal. It is one operation under its own name only if the choice is left open.
"""

from collections.abc import Callable, Mapping

from torch import nn

from automl import Algebra, Graph, Open, Operation, declare

Composites = Mapping[str, Callable[[Graph, str], str]]
"""Functions that add a composite to a graph after a node, and return the last node; the shape
does not change."""


def declare_composites(module: str, composites: Composites) -> None:
    """Declare each composite as an operation of one input.

    Args:
        module: The name of the module that declares them.
        composites: The composites, by name.
    """
    for name, part in composites.items():
        declare(Operation(name, _builder(module, part), lambda shapes: shapes[0], algebra=_ALGEBRA))


def add_composite(graph: Graph, composites: Composites, choice: str | Open, h: str) -> str:
    """Add the chosen composite, or the open choice itself, after node h."""
    return graph.add(choice, h) if isinstance(choice, Open) else composites[choice](graph, h)


def joined(graph: Graph, operation: str, terms: list[str]) -> str:
    """Apply an operation to several nodes; a single node is returned unchanged."""
    return graph.add(operation, *terms) if len(terms) > 1 else terms[0]


_ALGEBRA = Algebra(parametric=True)
"""The algebra of all composites: assuming that two of them differ is always safe."""


def _builder(
    module: str, part: Callable[[Graph, str], str]
) -> Callable[[list[tuple[int, ...]]], nn.Module]:
    def build(shapes: list[tuple[int, ...]]) -> nn.Module:
        graph = Graph()
        graph.output(part(graph, graph.input("x", shapes[0])))
        return graph.build()

    # `declare` compares modules to detect two spaces that declare the same name.
    build.__module__ = module
    return build
